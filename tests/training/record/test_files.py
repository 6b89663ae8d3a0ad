import errno
import os
from pathlib import Path

import pytest

from earlydrop.training.record import files


@pytest.fixture
def open_elsewhere(monkeypatch):
    """Makes Windows' refusal of a file that is open: the first calls of a method of Path fail."""
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)

    def refuse(method, times):
        original, left = getattr(Path, method), [times]

        def refusing(self, *arguments, **keywords):
            left[0] -= 1
            if left[0] >= 0:
                raise PermissionError(errno.EACCES, "The process cannot access the file", str(self))
            return original(self, *arguments, **keywords)

        monkeypatch.setattr(Path, method, refusing)

    return refuse


def test_replacing_is_tried_again_while_another_process_has_the_file(tmp_path, open_elsewhere):
    target = tmp_path / "status.json"
    target.write_bytes(b"old")
    open_elsewhere("replace", 4)
    files.write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_file_that_stays_open_fails_with_its_name(tmp_path, open_elsewhere):
    open_elsewhere("replace", 1000)
    with pytest.raises(PermissionError, match=r"status\.json"):
        files.write_atomically(tmp_path / "status.json", b"new")


def test_removing_is_tried_again_and_a_file_that_stays_open_is_left(tmp_path, open_elsewhere):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    open_elsewhere("unlink", 3)
    files.remove(tmp_path / "a")
    files.remove(tmp_path / "never there")
    open_elsewhere("unlink", 1000)
    files.remove(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_cannot_be_opened_is_not_synced(tmp_path, monkeypatch):
    original = os.open

    def no_folders(path, *arguments, **keywords):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", no_folders)
    files.write_atomically(tmp_path / "x", b"content")
    assert (tmp_path / "x").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("length", "number", "long"),
    [(259, errno.ENOENT, False), (260, errno.ENOENT, True), (300, errno.ENOSPC, False)],
)
def test_a_long_path_is_named_as_the_reason_on_windows(length, number, long, monkeypatch):
    path = "/" + "x" * (length - 1)
    error = OSError(number, "why not", path)
    assert files.why(error) == "why not"
    monkeypatch.setattr(files, "LONGEST_PATH", 259)
    words = files.why(error)
    expected = (
        f"why not; the path has {length} characters, and Windows allows 259: "
        "use a folder with a shorter path"
    )
    assert words == (expected if long else "why not")
