import os
from pathlib import Path

import pytest

from dms_resources.private_files import write_private


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777], ids=oct)
def test_a_file_is_its_owners_only(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o666)
    before = os.umask(umask)
    try:
        write_private(path, b"new")
    finally:
        os.umask(before)
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "secret"
    write_private(path, b"old")

    def fail(*values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"dms_resources.private_files.os.{step}", fail)
    with pytest.raises(OSError, match="No space left"):
        write_private(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize("path", ["", ".", "/", "//"])
def test_a_path_without_a_name_is_a_folder(path: str) -> None:
    with pytest.raises(IsADirectoryError):
        write_private(Path(path), b"new")


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"theirs")
    path = tmp_path / "secret"
    path.symlink_to(theirs)
    (tmp_path / ".secret.draft").symlink_to(theirs)
    write_private(path, b"ours")
    assert theirs.read_bytes() == b"theirs"
    assert not path.is_symlink()
    assert path.read_bytes() == b"ours"


def test_the_draft_of_a_writer_that_was_killed_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".secret.draft").write_bytes(b"half")
    write_private(tmp_path / "secret", b"whole")
    assert os.listdir(tmp_path) == ["secret"]


def test_a_file_that_is_there_is_kept_where_it_is_not_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, b"first", replace=False)
    with pytest.raises(FileExistsError):
        write_private(path, b"second", replace=False)
    assert (path.read_bytes(), mode(path)) == (b"first", 0o600)
    assert os.listdir(tmp_path) == ["secret"]
