"""Hyperparameter tuning on Optuna: compare samplers honestly, then run the best one on as many cores as there are."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.comparison import ComparisonResult
    from tuner.definition import ComparisonDefinition, StudyDefinition
    from tuner.errors import TunerError
    from tuner.manager import StudyManager
    from tuner.samplers import CoarseToFineSampler, ZoomOptions, explain_trial

__all__ = [
    "CoarseToFineSampler",
    "ComparisonDefinition",
    "ComparisonResult",
    "StudyDefinition",
    "StudyManager",
    "TunerError",
    "ZoomOptions",
    "explain_trial",
]

_HOMES = {
    "CoarseToFineSampler": "samplers",
    "ComparisonDefinition": "definition",
    "ComparisonResult": "comparison",
    "StudyDefinition": "definition",
    "StudyManager": "manager",
    "TunerError": "errors",
    "ZoomOptions": "samplers",
    "explain_trial": "samplers",
}
"""Where each lives. It is loaded when it is first named: `tuner-health` needs none of it, and has no second to wait."""


if not TYPE_CHECKING:  # which would take any name, then

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
