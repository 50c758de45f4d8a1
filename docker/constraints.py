"""Print the versions of all that the image is made of, as they are installed here: python constraints.py EXTRA…"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BUILT_WITH = Requirement("hatchling")


def required(requirement: Requirement, seen: set[tuple[str, str]]) -> Iterator[str]:
    """The lines of all that a requirement brings along, itself included."""
    found = distribution(requirement.name)
    yield f"{canonicalize_name(found.name)}=={found.version}"
    for extra in ("", *requirement.extras):
        if (found.name, extra) not in seen:
            seen.add((found.name, extra))
            for text in found.requires or ():
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    yield from required(further, seen)


asked = Requirement(f"tuner[{','.join(sys.argv[1:])}]")
seen: set[tuple[str, str]] = set()
lines = {line for root in (asked, BUILT_WITH) for line in required(root, seen)}
print("# The libraries of the image, as they were tested: `make constraints` writes down those of .venv.")
print("\n".join(sorted(line for line in lines if not line.startswith("tuner=="))))
