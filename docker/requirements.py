"""Print what a pyproject.toml requires, extras included, a line each: python requirements.py pyproject.toml EXTRA…"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
extras = [line for extra in sys.argv[2:] for line in project["optional-dependencies"][extra]]
print("\n".join([*project["dependencies"], *extras]))
