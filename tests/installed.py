"""An objective of a test's own, registered as an installed package is, and a script beside it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["install"]


def install(folder: Path, name: str, module: str, script: str) -> None:
    """Write the module `name`, which holds the objective `name`, its registration, and `script.py`."""
    (folder / f"{name}.py").write_text(module)
    (folder / "script.py").write_text(script)
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[tuner.objectives]\n{name} = {name}:{name}\n")
