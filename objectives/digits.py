"""Real handwritten digits: the quick start.

Too easy to rank samplers with: measured, the spread among good configurations is a third of the noise
between seeds.
"""

from __future__ import annotations

from objectives.datasets import load_digits
from objectives.training import TrainingObjective

__all__ = ["digits"]

digits = TrainingObjective(
    name="digits",
    description="dev cross-entropy of a network on 8×8 digits (quick; too easy to rank samplers)",
    load=load_digits,
)
