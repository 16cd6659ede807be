"""`/dms/peers/1.0.0`: the exchange of signed adverts, which any peer may pass on.

A new peer that knows one address can find all other peers through it.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from dms_resources.demands import Demand

from .bid import MAX_GPUS

__all__ = ["MAX_ADVERTS", "AdvertiseAnswer", "AdvertiseRequest", "AdvertsAnswer", "AdvertsRequest"]

MAX_ADVERTS: Final = 64
"""The largest number of adverts in one answer."""


class AdvertiseRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="advertise"):
    """Sends the caller's own advert, a signed envelope. The answer is AdvertiseAnswer."""

    advert: bytes


class AdvertsRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="adverts"):
    """Requests adverts. The answer is AdvertsAnswer: the peer's own advert and a page of at most `limit` others.

    With a `demand`, only the adverts of peers with enough free capacity. `after` is where the previous page ended. A
    caller that begins with a random peer id gets other adverts than the callers before it.
    """

    limit: Annotated[int, Meta(ge=1, le=MAX_ADVERTS)] = 16
    after: Annotated[str, Meta(max_length=128)] = ""
    demand: Demand | None = None

    def __post_init__(self) -> None:
        if self.demand is not None and len(self.demand.gpus) > MAX_GPUS:
            raise ValueError(f"at most {MAX_GPUS} GPUs can be asked for")


class AdvertiseAnswer(Struct, frozen=True, kw_only=True):
    """The advert was accepted. If it does not change, it need not be sent again within `again_after` seconds."""

    again_after: float


class AdvertsAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Signed envelopes, first the answering peer's own. The next page begins after `next` ("" after the last page)."""

    adverts: tuple[bytes, ...]
    next: str = ""
