"""Clients of other languages run a job at our provider, follow it, and speak to its port through a tunnel."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dms_protocols.messages.job import Job, job_digest
from dms_protocols.wire.conversion import from_map

PROGRAM = Path(__file__).parents[2] / "examples" / "executors" / "run_cmd.py"
# Says that it listens, answers one question in capitals when the question has ended, and exits.
SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
connection, _ = listener.accept()
question = b""
while piece := connection.recv(4096):
    question += piece
connection.sendall(question.upper())
connection.close()
print("served", flush=True)
sys.exit(5)
"""


@pytest.fixture
def hosting(programs: Any, tmp_path: Path) -> Iterator[Any]:
    """Our provider, with the executor `command`."""
    program = tmp_path / "run_cmd.py"
    shutil.copy(PROGRAM, program)
    program.chmod(0o755)
    with programs.provider("Python", executor=str(program)) as peer:
        yield peer


@pytest.mark.parametrize("language", ["Go", "JavaScript"])
def test_a_job_is_run_followed_and_reached(programs: Any, hosting: Any, tmp_path: Path, language: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    document = {
        "execution": {"type": "command", "cmd": [sys.executable, "-c", SERVER, str(port)], "environment": ["A=b"]},
        "ports": [{"private": port}],
    }
    file = tmp_path / "job.json"
    file.write_text(json.dumps(document))
    found = programs.ask(language, "job", hosting.address, str(file))
    digest = job_digest(from_map(document, Job))
    assert _octets(found["digest"]) == _octets(found["started"]["digest"]) == digest
    assert found["again"]["digest"] == found["started"]["digest"]
    assert found["conflict"] == "job_conflict"
    assert found["answer"] == "HELLO"
    assert found["closed"] in ("port_closed", "job_not_running")
    assert found["states"][-1] == "exited"
    assert (found["exit"]["kind"], found["exit"]["code"]) == ("code", 5)
    assert found["output"] + found["rest"] == "ready\nserved\n"
    assert found["released"] == found["started"]["lease_id"]


def _octets(value: Any) -> bytes:
    """Bytes as the programs print them."""
    if isinstance(value, str):
        return base64.b64decode(value)
    return bytes.fromhex(value["hex"])
