"""The process in which a vendor's library runs: `python -m dms_resources.machine.hardware.gpu VENDOR SECONDS`.

The library may hang or crash it. It writes one report and ends. With `--watch` it writes one report, as a line of JSON,
for each line on its standard input, and ends when the input ends.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from typing import IO

import msgspec

from .amd import report_amdsmi
from .nvidia import report_nvidia

_REPORTS = {"nvidia": report_nvidia, "amd": report_amdsmi}


def main() -> None:
    """Report on a vendor's devices until standard input ends."""
    vendor, seconds, *options = sys.argv[1:]
    with _take_standard_output() as output:
        if "--watch" not in options:
            _report(vendor, float(seconds), output)
            return
        for _ in sys.stdin.buffer:
            _report(vendor, float(seconds), output)


def _take_standard_output() -> IO[bytes]:
    # A library that prints must not print into the report.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def _report(vendor: str, seconds: float, output: IO[bytes]) -> None:
    # If the parent has ended and the library hangs, only this alarm ends the process.
    signal.alarm(math.ceil(seconds) + 1)
    output.write(msgspec.json.encode(_REPORTS[vendor]()) + b"\n")
    output.flush()
    signal.alarm(0)


if __name__ == "__main__":
    main()
