"""Peers of four languages as processes, built once: `dms-peer`, and the programs in `go`, `js` and `rust`.

They are used if DMS_INTEROP is set and the language is installed. Rust takes minutes to build: it is used if
DMS_INTEROP is `all` (or `write`, which rewrites the matrix), and not if it is 1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
INTEROP = os.environ.get("DMS_INTEROP", "")
PATIENCE = 120.0
BUILD_PATIENCE = 1800.0

MACHINE = {
    "cpu": {"cores": 8},
    "ram": {"size": "32GiB"},
    "disk": {"size": "1TiB"},
    "gpus": [{"uuid": "GPU-a", "vram": "24GiB"}],
}
# What all providers offer.
OFFER = ["--cpu", "4", "--ram", "16GiB", "--disk", "100GiB"]


@dataclass(frozen=True)
class RunningPeer:
    """A provider in another process, its first message, and the process."""

    ready: dict[str, Any]
    process: subprocess.Popen[str]

    @property
    def peer_id(self) -> str:
        return self.ready["peer_id"]

    @property
    def address(self) -> str:
        return self.ready["addrs"][0]

    def next_line(self) -> dict[str, Any]:
        """The next JSON object that the process prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the provider ended without a word"
        return json.loads(line)


class Programs:
    """Starts the peers of each language. If a language is not installed, a test that needs it is skipped."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._built: dict[str, list[str]] = {}

    def need(self, *languages: str) -> None:
        """Build what is not built yet. Skips the test if that is not possible."""
        if not INTEROP:
            pytest.skip("DMS_INTEROP is not set: clients and providers in other languages are not tried")
        for language in languages:
            if language == "Rust" and INTEROP == "1":
                pytest.skip("DMS_INTEROP is 1: Rust is tried with `all`")
            if language != "Python":
                self.command(language)

    def command(self, language: str) -> list[str]:
        """The command of a language's program, which is built at the first use."""
        build = {"Go": self._go, "JavaScript": self._javascript, "Rust": self._rust}[language]
        if language not in self._built:
            self._built[language] = build()
        return self._built[language]

    def ask(self, language: str, *arguments: str) -> dict[str, Any]:
        """The output of a program, with the options before its command. It fails if the program fails."""
        self.need(language)
        done = subprocess.run(
            [*self.command(language), *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, f"{language}: {done.stderr}"
        return json.loads(done.stdout)

    @contextmanager
    def provider(self, language: str, *options: str, executor: str = "") -> Iterator[RunningPeer]:
        """A provider on loopback that offers 4 cores, 16 GiB and 100 GiB. Ours has no options and offers everything.

        With `executor`, the path of a program, ours runs jobs with the executor `command`.
        """
        command = self._dms_peer(executor) if language == "Python" else [*self.command(language), *options, "provider"]
        with _running(command) as peer:
            yield peer

    @contextmanager
    def running(self, language: str, *arguments: str) -> Iterator[RunningPeer]:
        """A program that runs until the block ends, after it has reported that it is ready."""
        self.need(language)
        with _running([*self.command(language), *arguments]) as peer:
            yield peer

    def _go(self) -> list[str]:
        if shutil.which("go") is None:
            pytest.skip("Go is not installed")
        program = self._scratch / "interop-go"
        _build(["go", "build", "-trimpath", "-o", str(program), "."], HERE / "go")
        return [str(program)]

    def _javascript(self) -> list[str]:
        if shutil.which("node") is None or shutil.which("npm") is None:
            pytest.skip("Node and npm are not installed")
        lock, installed = HERE / "js" / "package-lock.json", HERE / "js" / "node_modules" / ".package-lock.json"
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            _build(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], HERE / "js")
        return ["node", str(HERE / "js" / "main.js")]

    def _rust(self) -> list[str]:
        if shutil.which("cargo") is None:
            pytest.skip("cargo is not installed")
        _build(["cargo", "build", "--locked", "--quiet"], HERE / "rust")
        # What was built once is not built again.
        target = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "rust" / "target"))
        return [str(target / "debug" / "interop-rust")]

    def _dms_peer(self, executor: str = "") -> list[str]:
        place = self._scratch / ("provider-of-jobs" if executor else "provider")
        home, machine = str(place), self._scratch / "machine.json"
        if executor:
            place.mkdir(mode=0o700, exist_ok=True)
            (place / "peer.yaml").write_text(f"executors:\n  command: {{command: [{executor}]}}\n")
        machine.write_text(json.dumps(MACHINE))
        dms_peer = [sys.executable, "-m", "dms_peer"]
        onboard = ["onboard", "--home", home, "--machine", str(machine), *OFFER, "--gpu", "all", "--json"]
        subprocess.run([*dms_peer, *onboard], env=_environment(), check=True, capture_output=True, timeout=PATIENCE)
        access = self._scratch / "access.yaml"
        access.write_text("shares: {stranger_capacity: 1000}\n")
        listen = ["--listen", "/ip4/127.0.0.1/tcp/0"]
        return [*dms_peer, "run", "--home", home, *listen, "--access", str(access), "--json"]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _build(command: Sequence[str], where: Path) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=BUILD_PATIENCE, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@contextmanager
def _running(command: Sequence[str]) -> Iterator[RunningPeer]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment())
    # No test waits for ever for a line that does not arrive.
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        with process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, "the provider did not start"
                yield RunningPeer(json.loads(line), process)
            finally:
                process.kill()
    finally:
        watchdog.cancel()
        watchdog.join()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The peers of all languages."""
    return Programs(tmp_path_factory.mktemp("interop"))
