"""What commands show of jobs while they run: their output line by line with the node's name, and their states.

Output comes in pieces of any size. Lines are put together for each job and stream; what other machines wrote cannot
control the terminal.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from typing import Final, Protocol, TextIO

from msgspec.structs import asdict

from dms_protocols.messages.job import JobExit, JobOutput, JobStatus
from dms_resources.units import format_size

from ..requesting.reports import Reserved
from .output import comment, print_json, say_labelled
from .tables.common import short_peer_id

__all__ = ["JSONJobs", "JobPrinter", "ShownJobs", "describe_exit", "exit_code"]

# A line that does not end is shown in parts of this many bytes.
_LONGEST_LINE: Final = 16 * 1024
_SIGNAL_BASE: Final = 128
_KILLED: Final = 137


class JobPrinter(Protocol):
    """Shows jobs, by the name of their node."""

    def deployed(self, reserved: Reserved) -> None:
        """All jobs run, at these peers."""
        ...

    def state(self, name: str, status: JobStatus) -> None:
        """A job is in another state."""
        ...

    def output(self, name: str, piece: JobOutput) -> None:
        """A job wrote something."""
        ...

    def finish(self, name: str) -> None:
        """There is no more output of this job."""
        ...


class ShownJobs:
    """Shows jobs to a person: output on standard output and standard error, states as comments."""

    def __init__(self, names: Sequence[str], *, labels: bool | None = None) -> None:
        self._width = max(map(len, names), default=0)
        # One job alone needs no name beside each line.
        self._labels = len(names) > 1 if labels is None else labels
        self._colors = {name: number for number, name in enumerate(names)}
        self._unfinished: dict[tuple[str, str], bytearray] = {}
        self._told: dict[str, str] = {}

    def deployed(self, reserved: Reserved) -> None:
        for node in reserved.nodes:
            ports = f", ports {', '.join(map(str, node.ports))}" if node.ports else ""
            comment(f"{node.node_id} runs at {short_peer_id(node.peer_id)}, lease {node.lease_id[:8]}{ports}")

    def state(self, name: str, status: JobStatus) -> None:
        if status.exit is not None:
            line = f"{name} {describe_exit(status.exit)}"
        else:
            line = f"{name} is {status.state}" + (f": {status.reason}" if status.reason else "")
        # A state may be heard of twice, by its change and at the end of the output.
        if self._told.get(name) != line:
            self._told[name] = line
            comment(line)

    def output(self, name: str, piece: JobOutput) -> None:
        if piece.dropped:
            comment(f"{name}: {format_size(piece.dropped)} of output are no longer kept")
        kept = self._unfinished.setdefault((name, piece.stream), bytearray())
        kept += piece.data
        *lines, rest = bytes(kept).split(b"\n")
        while len(rest) > _LONGEST_LINE:
            lines.append(rest[:_LONGEST_LINE])
            rest = rest[_LONGEST_LINE:]
        kept[:] = rest
        for line in lines:
            self._line(name, piece.stream, line)

    def finish(self, name: str) -> None:
        for stream in ("stdout", "stderr"):
            if rest := self._unfinished.pop((name, stream), None):
                self._line(name, stream, bytes(rest))

    def _line(self, name: str, stream: str, line: bytes) -> None:
        out: TextIO = sys.stderr if stream == "stderr" else sys.stdout
        label = f"{name.ljust(self._width)} | " if self._labels else ""
        say_labelled(label, line.rstrip(b"\r").decode("utf-8", "replace"), self._colors.get(name, 0), out)


class JSONJobs:
    """Shows jobs as JSON, one object in each line. Output is base64 in `data`."""

    def deployed(self, reserved: Reserved) -> None:
        print_json({**asdict(reserved), "event": "deployed"})

    def state(self, name: str, status: JobStatus) -> None:
        print_json({"event": "state", "node_id": name, "job": status})

    def output(self, name: str, piece: JobOutput) -> None:
        print_json(
            {
                "event": "output",
                "node_id": name,
                "stream": piece.stream,
                "offset": piece.offset,
                "dropped": piece.dropped,
                "data": base64.b64encode(piece.data).decode(),
            }
        )

    def finish(self, name: str) -> None:
        pass


def exit_code(job_exit: JobExit) -> int:
    """The exit code of a command that ran this job: the program's own, 128 and the signal's number, or 1."""
    match job_exit.kind:
        case "code":
            return (job_exit.code or 0) & 0xFF
        case "signal" | "stopped" if job_exit.signal is not None:
            return _SIGNAL_BASE + (job_exit.signal & 0x7F)
        case "memory":
            return _KILLED
        case _:
            return 1


def describe_exit(job_exit: JobExit) -> str:
    """How a job ended, for people: "exited with code 3"."""
    said = {
        "code": f"exited with code {job_exit.code}",
        "signal": f"was ended by signal {job_exit.signal}",
        "memory": "used more memory than its lease has, and was killed",
        "stopped": "was stopped",
        "evicted": "was ended by the owner of the machine",
        "expired": "was ended with its lease",
        "lost": "is lost: its end was not seen",
        "failed": "could not be started",
    }[job_exit.kind]
    killed = f" ({job_exit.oom_kills} processes killed for memory)" if job_exit.oom_kills else ""
    return said + killed + (f": {job_exit.message}" if job_exit.message else "")
