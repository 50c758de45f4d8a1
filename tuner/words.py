"""Words for numbers."""

from __future__ import annotations

__all__ = ["plural"]


def plural(amount: float, noun: str) -> str:
    """So many of them: "1 trial", "1,000,000 trials", "2.5 hours", "3 studies"."""
    several = noun[:-1] + "ies" if noun.endswith("dy") else noun + "s"
    shown = f"{amount:,}" if isinstance(amount, int) else f"{amount:,g}"
    return f"{shown} {noun if amount == 1 else several}"
