"""What is tuned: objectives, each a generator of epochs (see `objectives.epoch`)."""
