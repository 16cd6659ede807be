"""The processes of a benchmark: a provider in each language, and the two load generators."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
INTEROP: Final = HERE.parent / "interop"


class Conversation:
    """A process that answers each line of JSON with one."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self.read()

    def read(self) -> dict[str, Any]:
        """The next line. It fails if the process fails."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended without an answer")  # type: ignore[arg-type]
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **order: object) -> Any:
        """The result of an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.read()["value"]

    def let_talk(self) -> None:
        """Read the rest of the process's output, so that the process never blocks on it."""
        assert self.process.stdout is not None
        threading.Thread(target=deque, args=(self.process.stdout, 0), daemon=True).start()

    def end(self) -> None:
        """End the process."""
        with self.process:
            self.process.kill()


@contextmanager
def conversation(command: Sequence[str]) -> Iterator[Conversation]:
    """A process that runs while the block runs."""
    opened = Conversation(command)
    try:
        yield opened
    finally:
        opened.end()


@dataclass(frozen=True)
class Provider:
    """The address of a provider, its process, and its software."""

    address: str
    process: subprocess.Popen[str]
    versions: dict[str, str]


@dataclass(frozen=True)
class Programs:
    """The commands that start a provider and a load generator in each installed language."""

    providers: dict[str, list[str]]
    loads: dict[str, list[str]]

    @contextmanager
    def provider(self, who: str, scratch: Path) -> Iterator[Provider]:
        """A new provider, with a home in `scratch` if it needs one."""
        home = [tempfile.mkdtemp(dir=scratch)] if who == "ours" else []
        with conversation([*self.providers[who], *home]) as opened:
            # The stubs report every connection.
            opened.let_talk()
            yield Provider(opened.first["addrs"][0], opened.process, opened.first.get("versions", {}))


def find_programs(scratch: Path) -> Programs:
    """Build what can be built here: Python always, Go and JavaScript if they are installed."""
    providers = {"ours": [sys.executable, str(HERE / "provider.py")]}
    loads = {"ours": [sys.executable, str(HERE / "load.py")]}
    if shutil.which("node") and shutil.which("npm"):
        if not (INTEROP / "js" / "node_modules").exists():
            install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            subprocess.run(install, cwd=INTEROP / "js", check=True, stdout=sys.stderr)
        providers["js"] = ["node", str(INTEROP / "js" / "main.js"), "provider"]
    if shutil.which("go"):
        program = str(scratch / "interop")
        subprocess.run(["go", "build", "-trimpath", "-o", program, "."], cwd=INTEROP / "go", check=True)
        providers["go"], loads["go"] = [program, "provider"], [program, "load"]
    return Programs(providers, loads)


@contextmanager
def running_peer(home: Path) -> Iterator[None]:
    """`dms-peer run` on this home."""
    command = [sys.executable, "-m", "dms_peer", "run", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0"]
    with conversation([*command, "--json"]):
        yield


def package_path() -> None:
    """Let the processes find the packages of this checkout, installed or not."""
    root = HERE.parents[1]
    ours = [str(root / room) for room in ("peer", "protocols", "resources")]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*ours, *([before] if before else [])])
