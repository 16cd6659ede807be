"""What the owner sets for all jobs."""

from __future__ import annotations

from msgspec import Struct

from .spool import KEPT_BYTES

__all__ = ["JobSettings"]


class JobSettings(Struct, frozen=True, kw_only=True):
    """`grace` is how long (seconds) a job has to end by itself when its lease ends or the owner evicts it,
    `longest_grace` the most that its holder gets for a stop.

    `output_bytes` of the output of each job are kept, and taken at `output_rate` bytes a second at most. What is known
    of a job, its output too, is kept for `retention` seconds after its lease ended, of `retained` jobs with
    `retained_bytes` of output at most.
    """

    grace: float = 10.0
    longest_grace: float = 300.0
    output_bytes: int = KEPT_BYTES
    output_rate: int = 4 << 20
    retention: float = 3600.0
    retained: int = 64
    retained_bytes: int = 256 << 20
