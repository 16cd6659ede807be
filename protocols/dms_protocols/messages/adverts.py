"""Capacity adverts: what a peer publishes about itself, as signed deterministic CBOR."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from dms_resources.components import Amount, FreeResources

from .bid import MAX_GPUS, Name, Place

__all__ = [
    "ADVERT_DOMAIN",
    "ADVERT_PAYLOAD_TYPE",
    "LONGEST_ADVERT_TTL",
    "MAX_ADDRS",
    "MAX_ADVERT_SIZE",
    "Addrs",
    "CapacityAdvert",
    "PeerID",
]

ADVERT_DOMAIN: Final = "dms-advert"
"""The domain of the signature, so that it is valid for adverts only."""

ADVERT_PAYLOAD_TYPE: Final = b"/dms/advert/1.0.0"

MAX_ADVERT_SIZE: Final = 8 * 1024
"""The largest signed advert, in bytes. A machine with eight GPUs needs about 1,500."""

MAX_ADDRS: Final = 8
"""The largest number of addresses in an advert or a broadcast request."""

LONGEST_ADVERT_TTL: Final = 21600.0
"""The longest time to live of an advert, in seconds."""

PeerID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Addrs: TypeAlias = Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=MAX_ADDRS)]


class CapacityAdvert(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `peer_id` had free at `issued_at` (Unix seconds), and its addresses. Valid for `ttl` seconds.

    Of two adverts of one peer the one with the higher `sequence` counts. `executors` are those that the peer has; None
    if it does not say. `free` also says whether the peer drains, offers anything and is simulated.
    """

    peer_id: PeerID
    addrs: Addrs
    sequence: Amount
    issued_at: float
    ttl: Annotated[float, Meta(gt=0, le=LONGEST_ADVERT_TTL)]
    free: FreeResources
    location: Place | None = None
    executors: Annotated[tuple[Name, ...], Meta(max_length=64)] | None = None

    def __post_init__(self) -> None:
        if len(self.free.gpus) > MAX_GPUS:
            raise ValueError(f"at most {MAX_GPUS} GPUs can be advertised")

    @property
    def expires_at(self) -> float:
        """When the advert expires (Unix seconds)."""
        return self.issued_at + self.ttl
