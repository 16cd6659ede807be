"""`/dms/tunnel/1.0.0`: bytes to and from one port of a job.

The first frame of a stream is a TunnelRequest with an `id`, and so is the answer: `ok` with TunnelAnswer, or an error.
After the `ok` the stream is the connection: every further byte in either direction is a byte of the job's.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from dms_resources.components import Port

__all__ = ["TunnelAnswer", "TunnelRequest"]


class TunnelRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="tunnel"):
    """Opens a connection to a `port` on which the job of a lease listens."""

    lease_id: Annotated[str, Meta(min_length=1, max_length=256)]
    port: Port


class TunnelAnswer(Struct, frozen=True, kw_only=True):
    """The connection is open."""
