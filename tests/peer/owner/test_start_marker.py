"""A start is marked as long as it lasts, and no longer, however it ends."""

import os
import signal
import subprocess
import sys

import pytest

from dms_peer.errors import PeerError
from dms_peer.home.home import Home
from dms_peer.owner.client import read_status
from dms_peer.owner.start_marker import StartMark, is_starting


def test_a_start_is_seen_while_it_lasts_and_looking_makes_nothing(tmp_path):
    path = tmp_path / "starting"
    assert not is_starting(path)
    assert not path.exists()
    with StartMark(path):
        assert is_starting(path)
        assert is_starting(path)
        assert path.stat().st_mode & 0o777 == 0o600
    assert not is_starting(path)


def test_a_start_that_was_killed_leaves_no_mark(tmp_path):
    path = tmp_path / "starting"
    program = (
        "import sys, pathlib\n"
        "from dms_peer.owner.start_marker import StartMark\n"
        "with StartMark(pathlib.Path(sys.argv[1])):\n"
        "    print('marked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"marked\n"
        assert is_starting(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not is_starting(path)


@pytest.mark.parametrize("there", ["directory", "link", "fifo"])
def test_what_is_no_file_neither_stops_a_start_nor_holds_a_command_up(tmp_path, there):
    path = tmp_path / "starting"
    if there == "directory":
        path.mkdir()
    elif there == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    assert not is_starting(path)
    with StartMark(path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_commands_that_look_do_not_keep_a_peer_from_marking_its_start(tmp_path):
    path = tmp_path / "starting"
    path.touch()
    program = (
        "import sys, pathlib\n"
        "from dms_peer.owner.start_marker import is_starting\n"
        "print('looks', flush=True)\n"
        "while True:\n"
        "    is_starting(pathlib.Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(20):
                with StartMark(path):
                    assert is_starting(path)
        finally:
            process.kill()


@pytest.mark.parametrize("there", [False, True], ids=["a new home", "a home that is there"])
def test_status_says_that_a_peer_starts_before_its_libraries_are_loaded(tmp_path, there):
    home = Home(tmp_path / "home")
    if there:
        home.path.mkdir(mode=0o700)
    # The first import of one of the libraries that take seconds waits until the test has looked.
    program = (
        "import sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Wait(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name in ('libp2p', 'trio', 'multiaddr', 'yaml'):\n"
        "            print(name, flush=True)\n"
        "            sys.stdin.read()\n"
        "            raise SystemExit(7)\n"
        "sys.meta_path.insert(0, Wait())\n"
        "from dms_peer.__main__ import run_command\n"
        "run_command(['run', '--home', sys.argv[1]])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(home.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        with pytest.raises(PeerError) as caught:
            read_status(home)
        assert caught.value.code == "starting"
        process.communicate(timeout=60)
    assert process.returncode == 7
    assert not is_starting(home.start_path)
