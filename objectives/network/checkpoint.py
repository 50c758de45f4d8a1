"""Checkpoints: nested plain values and arrays as bytes, without pickle."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["CheckpointError", "dump", "load"]


class CheckpointError(ValueError):
    """Bytes that are not a checkpoint, or one that does not fit."""


def dump(state: Mapping[str, Any]) -> bytes:
    """Bytes of nested mappings and lists of arrays, numbers, strings, booleans and None.

    Arrays keep dtype and bits; integers of any size and the floats NaN and ±inf survive.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[f"a{len(arrays)}"] = value
            return {"__array__": f"a{len(arrays) - 1}"}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value.item() if isinstance(value, np.generic) else value

    document = json.dumps(plain(state)).encode()
    with io.BytesIO() as file:
        np.savez(file, document=np.frombuffer(document, np.uint8), **arrays)  # type: ignore[arg-type]
        return file.getvalue()


def load(data: bytes) -> dict[str, Any]:
    """The state that `dump` was given.

    Raises:
        CheckpointError: the bytes were not made by `dump`.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        document = json.loads(arrays.pop("document").tobytes())
    except (OSError, KeyError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"not a checkpoint: {error}") from error

    def rich(value: Any) -> Any:
        if isinstance(value, dict):
            if "__array__" in value:
                return arrays[value["__array__"]]
            return {key: rich(item) for key, item in value.items()}
        return [rich(item) for item in value] if isinstance(value, list) else value

    state: dict[str, Any] = rich(document)
    return state
