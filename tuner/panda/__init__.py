"""Panda: one model, watched and adjusted by a person while it trains.

The course's words: with little computing power one babysits one model, as a panda its one cub, watching its curve and
nudging its learning rate day by day; with much of it one trains many models side by side, as caviar (see
`tuner.caviar`), and keeps the best.
"""

from tuner.panda.session import Event, Session, replay

__all__ = ["Event", "Session", "replay"]
