"""Two homes on one machine know of each other; what is in the folder besides is no harm."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dms_resources.machine.registry import other_peers, register_peer, shared_folder


def test_a_peer_of_another_home_is_seen_while_it_runs(tmp_path: Path) -> None:
    folder, one, two = tmp_path / "registry", tmp_path / "one", tmp_path / "two"
    assert other_peers(one, folder) == ()
    with register_peer(one, folder):
        assert other_peers(one, folder) == ()
        (sentence,) = other_peers(two, folder)
        assert f"(process {os.getpid()})" in sentence
        with register_peer(two, folder):
            assert len(other_peers(tmp_path / "three", folder)) == 2
    assert other_peers(two, folder) == ()
    assert os.listdir(folder) == []


def test_two_names_of_one_home_are_one_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with register_peer(tmp_path / "home", tmp_path / "registry"):
        assert other_peers(tmp_path / "link", tmp_path / "registry") == ()


def test_a_peer_that_was_killed_is_gone(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from dms_resources.machine.registry import register_peer
        with register_peer(Path(sys.argv[1]), Path(sys.argv[2])):
            print("ready", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "other"), str(tmp_path / "registry")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (sentence,) = other_peers(tmp_path / "home", tmp_path / "registry")
        assert f"(process {process.pid})" in sentence
        process.kill()
    assert other_peers(tmp_path / "home", tmp_path / "registry") == ()
    # The file that it left is taken over.
    with register_peer(tmp_path / "other", tmp_path / "registry"):
        assert len(other_peers(tmp_path / "home", tmp_path / "registry")) == 1


def test_what_else_is_in_the_folder_is_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "folder").mkdir()
    (folder / "text").write_text("not a number")
    assert other_peers(tmp_path, folder) == ()
    with register_peer(tmp_path / "other", folder):
        assert len(other_peers(tmp_path, folder)) == 1


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    with register_peer(tmp_path, folder):
        (name,) = os.listdir(folder)
    target = tmp_path / "precious"
    target.write_text("kept")
    (folder / name).symlink_to(target)
    with register_peer(tmp_path, folder):
        assert target.read_text() == "kept"


def test_a_registry_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with register_peer(tmp_path, tmp_path / "file"):
        assert other_peers(tmp_path, tmp_path / "file") == ()


def test_the_folder_is_for_all_users(tmp_path: Path) -> None:
    with register_peer(tmp_path, tmp_path / "registry"):
        assert (tmp_path / "registry").stat().st_mode & 0o7777 == 0o1777
    assert shared_folder().name == "dms-peer"


def test_a_file_without_a_number_is_a_peer_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "registry"
    with register_peer(tmp_path / "other", folder):
        (name,) = os.listdir(folder)
        (folder / name).write_text("x\n")
        assert "(process unknown)" in other_peers(tmp_path, folder)[0]
