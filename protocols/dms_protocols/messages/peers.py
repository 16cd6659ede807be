"""`/dms/peers/1.0.0`: the exchange of signed adverts, which anybody may pass on.

A new peer that knows one address finds all others through it.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from dms_resources.demands import Demand

from .bid import MAX_GPUS

__all__ = ["MAX_ADVERTS", "AdvertiseAnswer", "AdvertiseRequest", "AdvertsAnswer", "AdvertsRequest"]

MAX_ADVERTS: Final = 64
"""Adverts in one answer."""


class AdvertiseRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="advertise"):
    """Brings the caller's own advert, a signed envelope; answered with AdvertiseAnswer."""

    advert: bytes


class AdvertsRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="adverts"):
    """Asks for adverts; answered with AdvertsAnswer: the peer's own and a page of at most `limit` of others.

    Where there is a `demand`, only for those of peers that had room for it. `after` is where a page before ended; by a
    peer id of its own choice a caller begins somewhere else than others do.
    """

    limit: Annotated[int, Meta(ge=1, le=MAX_ADVERTS)] = 16
    after: Annotated[str, Meta(max_length=128)] = ""
    demand: Demand | None = None

    def __post_init__(self) -> None:
        if self.demand is not None and len(self.demand.gpus) > MAX_GPUS:
            raise ValueError(f"at most {MAX_GPUS} GPUs can be asked for")


class AdvertiseAnswer(Struct, frozen=True, kw_only=True):
    """The advert was taken; it need not be sent again within `again_after` seconds, unless something changed."""

    again_after: float


class AdvertsAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Signed envelopes, that of the answering peer itself first; the page behind begins after `next` ("": none)."""

    adverts: tuple[bytes, ...]
    next: str = ""
