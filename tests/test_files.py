"""New files: whole or not there, and never in the place of another."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tuner.errors import ConflictError, StorageError
from tuner.files import new_file


@pytest.fixture(params=["hard links", "no hard links"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On a file system of either kind."""
    if request.param == "no hard links":

        def link(*_: object) -> None:
            raise OSError(errno.EPERM, "not here")

        monkeypatch.setattr(os, "link", link)
    return tmp_path


def test_it_is_there_when_it_is_complete(folder: Path) -> None:
    file = folder / "a.json"
    with new_file(file, "an export") as part:
        part.write_text("half")
        assert not file.exists()
        part.write_text("whole")
    assert file.read_text() == "whole"
    assert os.listdir(folder) == ["a.json"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_its_name_too_is_on_the_disk_before_anybody_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut takes the name of a file whose folder was not written."""
    file, flush, flushed = folder / "a.json", os.fsync, list[tuple[bool, bool]]()

    def note(descriptor: int) -> None:
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), file.exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with new_file(file, "a backup"):
        pass
    assert flushed == [(False, False), (True, True)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_what_is_interrupted_leaves_nothing(folder: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_file(folder / "a.json", "an export") as part:  # noqa: PT012
        part.write_text("half")
        part.with_name(f"{part.name}-wal").touch()
        raise error
    assert os.listdir(folder) == []


def test_who_takes_the_name_meanwhile_keeps_it(folder: Path) -> None:
    file = folder / "a.json"
    with (  # noqa: PT012
        pytest.raises(ConflictError, match=r"a\.json is there already; an export goes into a new file"),
        new_file(file, "an export") as part,
    ):
        part.write_text("mine")
        file.write_text("another's")
    assert file.read_text() == "another's"
    assert os.listdir(folder) == ["a.json"]


def test_a_full_disk_is_named(folder: Path) -> None:
    file = folder / "a.json"
    with (
        pytest.raises(StorageError, match=r"cannot write .*a\.json: No space left on device"),
        new_file(file, "an export"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", ["a[1].json", "*.json", "n" * 250])
def test_a_name_is_taken_as_it_is(folder: Path, name: str) -> None:
    (folder / ".a1.json").write_text("another's")
    with new_file(folder / name, "an export") as part:
        part.write_text("whole")
        part.with_name(f"{part.name}-wal").touch()
    assert sorted(os.listdir(folder)) == sorted([".a1.json", name])


def test_what_cannot_get_its_name_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="No space left"), new_file(folder / "a", "an export") as part:
        part.write_text("whole")
    assert os.listdir(folder) == []


def test_two_who_write_at_once_do_not_share_a_draft(folder: Path) -> None:
    """Processes of two containers may have the same number."""
    with new_file(folder / "a", "a backup") as one, new_file(folder / "b", "a backup") as other:
        assert one != other
    file = folder / "c"
    with pytest.raises(ConflictError), new_file(file, "a backup") as one:  # noqa: PT012, SIM117
        with new_file(file, "a backup") as other:
            assert one != other
            other.write_text("first")
    assert file.read_text() == "first"
