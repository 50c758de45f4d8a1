"""An objective that takes its time, and whose value anybody can work out."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from typing import Any

from objectives.epoch import Epoch, Hyperparameter


class Walk:
    """The value after each epoch is (x + trial) / epoch."""

    name, direction, description = "walk", "minimize", "for the containers' test"
    hyperparameters = (
        Hyperparameter("x", 0.5),
        Hyperparameter("epochs", 4),
        Hyperparameter("pause", 0.0),
    )

    def evaluate(
        self, params: Mapping[str, Any], *, seed: Any, resume: bytes | None = None
    ) -> Generator[Epoch, Any, None]:
        first = json.loads(resume) if resume else 0
        for epoch in range(first + 1, params["epochs"] + 1):
            time.sleep(params["pause"])
            state = epoch
            yield Epoch(
                epoch,
                (params["x"] + seed.trial) / epoch,
                {},
                checkpoint=lambda state=state: json.dumps(state).encode(),
            )


walk = Walk()
