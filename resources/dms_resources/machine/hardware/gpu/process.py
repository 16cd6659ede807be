"""Queries a vendor's library in a separate process, so that a library that hangs or crashes does not affect
this one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Final

import msgspec

from .devices import GPUReport

__all__ = ["DEADLINE", "KILL_DEADLINE", "ask_process", "command_line", "environment", "parse_report"]

# A driver that keeps no state between users may need several seconds for each GPU at the first call.
DEADLINE: Final = 30.0
KILL_DEADLINE: Final = 1.0


def command_line(vendor: str, seconds: float, *options: str) -> list[str]:
    """The command that starts the process. It does not search the current folder for modules."""
    return [sys.executable, "-P", "-m", "dms_resources.machine.hardware.gpu", vendor, str(seconds), *options]


def environment() -> dict[str, str]:
    """The environment of the process. It finds the same modules as this process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def ask_process(vendor: str, seconds: float = DEADLINE) -> GPUReport:
    """One report of a vendor's library within `seconds`. Never raises, and leaves no process behind.

    If a process stays after a kill (it waits inside the driver), it is reported and left to the kernel.
    """
    if not sys.executable:
        return GPUReport.failure(f"{vendor} GPUs cannot be queried: the Python interpreter is unknown")
    try:
        process = subprocess.Popen(
            command_line(vendor, seconds),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        return GPUReport.failure(f"{vendor} GPUs cannot be queried: {error.strerror}")
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return _after_hanging(vendor, seconds, process)
    except BaseException:
        process.kill()
        raise
    return parse_report(vendor, output, process.returncode)


def _after_hanging(vendor: str, seconds: float, process: subprocess.Popen[bytes]) -> GPUReport:
    process.kill()
    sentence = f"{vendor}'s GPU library did not answer within {seconds:g} s"
    try:
        process.communicate(timeout=KILL_DEADLINE)
    except subprocess.TimeoutExpired:
        sentence += f", and its process {process.pid} cannot be ended"
        if process.stdout is not None:
            process.stdout.close()
    return GPUReport.failure(sentence)


def parse_report(vendor: str, output: bytes, status: int) -> GPUReport:
    """The report in a process's output. If there is none, the report says how the process ended."""
    try:
        return msgspec.json.decode(output, type=GPUReport)
    except msgspec.DecodeError:
        ended = signal.Signals(-status).name if -status in set(signal.Signals) else f"status {status}"
        return GPUReport.failure(f"{vendor}'s GPU library crashed ({ended})")
