"""What stands in a path: names and numbers, none with a colon, as `:verb` follows them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from fastapi import Path
from starlette.convertors import StringConvertor, register_url_convertor

from tuner.service.schemas import LARGEST, NAME

__all__ = ["STUDY", "TRIAL", "ComparisonName", "Number", "StudyName", "allowed", "is_dashboards"]


class _Segment(StringConvertor):
    """A part of a path without a colon: so a verb that is not there is not taken for a name."""

    regex = "[^/:]+"


register_url_convertor("segment", _Segment())  # Starlette knows convertors by name only

STUDY = "/studies/{study:segment}"
TRIAL = f"{STUDY}/trials/{{number:segment}}"

StudyName = Annotated[str, Path(pattern=NAME, description="The study's name.")]
ComparisonName = Annotated[str, Path(pattern=NAME, description="The comparison's name.")]
Number = Annotated[int, Path(ge=0, le=LARGEST, description="The trial's number in its study.")]


def allowed(methods: Iterable[tuple[str, str]], path: str) -> list[str]:
    """The methods of a path, given all pairs of method and path template that there are."""
    return sorted({method for method, template in methods if re.fullmatch(_pattern(template), path)})


def _pattern(template: str) -> str:
    return "".join(
        _Segment.regex if part.startswith("{") else re.escape(part)
        for part in re.split(r"(\{\w+\})", template)
    )


def is_dashboards(path: str) -> bool:
    """Whether a path is one of the dashboard's own. Its `/` is not: that is our page."""
    first = path.partition("/")[2].partition("/")
    if first[0] in ("dashboard", "incompatible-rdb-schema", "favicon.ico"):
        return first[0] == "dashboard" or not first[1]
    return first[0] in ("api", "static", "csv", "artifacts") and bool(first[1])
