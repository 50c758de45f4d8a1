"""What a person does with the studies of a service, by name: the verbs of `StudyManager`, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from tuner.client.client import Client, RemoteStudy
from tuner.ledger import StudyState

__all__ = ["RemoteManager"]


class RemoteManager:
    """A service's studies, under the names that `StudyManager` has for a database's. Errors are those of `Client`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def state(self, name: str) -> StudyState:
        """Whether a study hands out trials."""
        return StudyState(self._study(name).status().state)

    def pause(self, name: str) -> None:
        """Let no trial of a study begin; those that run go on."""
        self._study(name).pause()

    def resume(self, name: str) -> None:
        """Let trials of a study that was paused or stopped begin again."""
        self._study(name).resume()

    def stop_study(self, name: str) -> None:
        """Let no trial of a study begin, and those that run end with their next report."""
        self._study(name).stop()

    def archive(self, name: str, *, undo: bool = False) -> None:
        """Take a study out of the list, or put it back."""
        self._study(name).archive(undo=undo)

    def stop(self, name: str, number: int) -> None:
        """End a running trial, after its next report."""
        self._study(name).stop_trial(number)

    def adjust(self, name: str, number: int, values: Mapping[str, Any]) -> None:
        """Change hyperparameters of a running trial from its next report on."""
        self._study(name).adjust(number, values)

    def _study(self, name: str) -> RemoteStudy:
        return RemoteStudy(self._client.transport, name)
