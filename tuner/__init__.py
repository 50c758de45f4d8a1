"""Hyperparameter tuning on Optuna: compare samplers honestly, then run the best one on as many cores as there are."""

from tuner.comparison import ComparisonResult
from tuner.definition import ComparisonDefinition, StudyDefinition
from tuner.errors import TunerError
from tuner.manager import StudyManager
from tuner.samplers import CoarseToFineSampler

__all__ = [
    "CoarseToFineSampler",
    "ComparisonDefinition",
    "ComparisonResult",
    "StudyDefinition",
    "StudyManager",
    "TunerError",
]
