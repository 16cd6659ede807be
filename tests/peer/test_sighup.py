"""SIGHUP with real processes: a new configuration, an invalid one, and a terminal that is closed."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dms_peer.home.home import Home
from dms_peer.owner.client import read_status

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
RUN = (sys.executable, "-m", "dms_peer", "run", "--json", "--no-mdns", "--no-dht", "--listen", "/ip4/127.0.0.1/tcp/0")
SECONDS = 60.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    machine = {"cpu": {"cores": 4}, "ram": {"size": "8GiB"}, "disk": {"size": "100GiB"}}
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    home = Home(tmp_path / "home")
    home.prepare()
    return home


def command(home: Home, *options: str) -> list[str]:
    return [*RUN, "--home", str(home.path), "--machine", str(home.path.parent / "machine.json"), *options]


@contextmanager
def running(home: Home, *options: str, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A running peer without a terminal. SIGHUP has its usual effect, unless `how` says otherwise."""
    # The suite itself may run under nohup.
    how.setdefault("preexec_fn", lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    with subprocess.Popen(
        command(home, *options), stdout=-1, stderr=-1, env=ENVIRONMENT, start_new_session=True, **how
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "ready"
            yield process
        finally:
            process.kill()


def log_line(process: subprocess.Popen[bytes], fragment: str) -> str:
    """The next log line that contains the fragment."""
    assert process.stderr is not None
    for line in process.stderr:
        if fragment in line.decode():
            return line.decode()
    raise AssertionError(f"the peer ended without logging {fragment!r}")


def test_a_running_peer_reads_its_terms_again_and_refuses_bad_ones(home: Home) -> None:
    config = home.path / "peer.yaml"
    config.write_text("terms: {prices: {currency: EUR, core: 1}}\n")
    with running(home, "--log-level", "info") as process:
        config.write_text("terms: {prices: {currency: EUR, core: 2}}\nguard: off\n")
        process.send_signal(signal.SIGHUP)
        log_line(process, "the configuration was read again")
        assert "guard" in log_line(process, "in force only after a restart")
        status = read_status(home)
        assert status.terms is not None
        assert status.terms.micros_per_hour == {"core": 2_000_000}

        config.write_text("terms: {prices: {currency: EUR, core: dear}}\n")
        process.send_signal(signal.SIGHUP)
        line = log_line(process, "the old configuration stays in force")
        assert "peer.yaml, line 1, column 39: terms.prices.core" in line
        status = read_status(home)
        assert status.terms is not None
        assert status.terms.micros_per_hour == {"core": 2_000_000}
        process.terminate()
        assert process.wait(SECONDS) == 0


def test_a_working_directory_that_was_removed_does_not_end_the_peer(home: Home, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    with running(home, cwd=tmp_path / "gone") as process:
        (tmp_path / "gone").rmdir()
        process.send_signal(signal.SIGHUP)
        log_line(process, "the old configuration stays in force")
        assert read_status(home).running
        process.terminate()
        assert process.wait(SECONDS) == 0


def test_under_nohup_sighup_is_ignored(home: Home) -> None:
    with running(home, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        assert read_status(home).running
        process.terminate()
        assert process.wait(SECONDS) == 0
        assert process.stderr is not None
        assert b"configuration" not in process.stderr.read()


def take_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_when_the_terminal_goes_away_the_peer_ends_in_good_order(home: Home) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(home),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=take_terminal,
    ) as process:
        os.close(theirs)
        try:
            shown = b""
            while b"\n" not in shown:
                shown += os.read(ours, 4096)
            assert json.loads(shown.splitlines()[0])["event"] == "ready"
            assert home.socket_path.exists()
            os.close(ours)
            assert process.wait(SECONDS) == 0
            assert not home.socket_path.exists()
        finally:
            process.kill()
