"""The command `tuner`, and `python -m tuner`.

All that `tuner.cli` imports stays, so the garbage collector rests meanwhile: it would take a fifth of the start. Worker
processes import this module again, as they do every program's, and spare themselves the command line.
"""

from __future__ import annotations

import gc

__all__ = ["main"]


def main() -> None:
    """Read the command line and do what it says."""
    gc.disable()
    from tuner.cli import main as run  # noqa: PLC0415 - not for worker processes

    gc.freeze()
    gc.enable()
    run()


if __name__ == "__main__":
    main()
