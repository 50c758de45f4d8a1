"""Hyperparameter tuning on Optuna."""
