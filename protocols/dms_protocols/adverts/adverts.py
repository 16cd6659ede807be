"""Signed capacity adverts: creating them, checking them, and a table of bounded size that holds them.

Rules:

1. An advert is valid if its envelope is valid, it names its signer, it was not issued in the future (apart from a
   difference between the clocks), and its time to live has not ended.
2. The table keeps the advert with the highest sequence number of each peer. A replayed old advert has no effect.
3. A full table drops the advert that is worth least (`adverts.retention`). A stranger that floods the table displaces
   its own adverts.
4. An advert costs no more than a few checks of signatures, however full the table is.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from dms_resources.components import FreeResources
from dms_resources.demands import Demand
from dms_resources.estimates import would_fit

from ..bidding.locations import why_not_here
from ..bidding.signing import EnvelopeOpener, Signer
from ..errors import AdvertError, CBORError, EnvelopeError, MessageError, ProtocolError
from ..messages.adverts import ADVERT_DOMAIN, ADVERT_PAYLOAD_TYPE, MAX_ADVERT_SIZE, CapacityAdvert
from ..messages.bid import EnsembleRequest, NodeRequest
from ..wire.cbor import decode_map
from ..wire.conversion import from_map, sealed_bytes
from .retention import AdvertRetention

__all__ = ["CLOCK_SKEW", "AdvertTable", "HeldAdvert", "Verdict", "could_hold", "open_advert", "seal_advert"]

CLOCK_SKEW: Final = 60.0
"""Seconds by which the signer's clock may be ahead of ours."""

# The heap keeps entries of replaced adverts. It is rebuilt when it has this many times the entries of the table.
_HEAP_SLACK: Final = 4


def seal_advert(advert: CapacityAdvert, signer: Signer) -> bytes:
    """The signed envelope of an advert. Raises AdvertError `bad_advert` if it has more than MAX_ADVERT_SIZE bytes."""
    raw = signer.sign(ADVERT_DOMAIN, ADVERT_PAYLOAD_TYPE, sealed_bytes(advert))
    if len(raw) > MAX_ADVERT_SIZE:
        raise AdvertError(f"an advert has at most {MAX_ADVERT_SIZE} bytes, not {len(raw)}")
    return raw


def open_advert(raw: bytes, opener: EnvelopeOpener, *, now: float) -> CapacityAdvert:
    """The advert in an envelope, if it is valid at `now` (Unix seconds) and signed by the peer that it names.

    For any other bytes it raises EnvelopeError, or AdvertError `bad_advert`, `advert_expired` or `advert_ahead`. It
    raises nothing else.
    """
    if len(raw) > MAX_ADVERT_SIZE:
        raise AdvertError(f"{len(raw)} bytes are too many for an advert")
    signed_by, payload = opener.open(raw, ADVERT_DOMAIN, ADVERT_PAYLOAD_TYPE)
    try:
        advert = from_map(decode_map(payload), CapacityAdvert)
    except (CBORError, MessageError) as error:
        raise EnvelopeError(f"the envelope holds no advert: {error.message}") from None
    if advert.peer_id != signed_by:
        raise AdvertError(f"the advert names {advert.peer_id} and is signed by {signed_by}")
    if advert.issued_at > now + CLOCK_SKEW:
        raise AdvertError("the advert was issued in the future", code="advert_ahead")
    if advert.expires_at < now:
        raise AdvertError("the advert has expired", code="advert_expired")
    return advert


def could_hold(advert: CapacityAdvert, node: NodeRequest) -> bool:
    """Whether this provider might run the node, according to its advert."""
    ports = len(node.public_ports.static) + node.public_ports.dynamic
    return (
        would_fit(advert.free, node.resources)
        and ports <= advert.free.ports
        and (advert.executors is None or set(node.executors) <= set(advert.executors))
        and why_not_here(node.location, advert.location) is None
    )


@dataclass(frozen=True, slots=True)
class HeldAdvert:
    """An advert in the table, and the envelope in which it can be passed on."""

    advert: CapacityAdvert
    raw: bytes

    def age(self, now: float) -> float:
        """The age of the figures in seconds; `now` is in Unix seconds."""
        return max(0.0, now - self.advert.issued_at)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the table did with an advert: `new` (kept), `old` or `invalid`.

    `code` says why an advert is invalid. For an old advert, `code` is `old_advert` if a later one is known, and empty
    if exactly this one is known.
    """

    outcome: Literal["new", "old", "invalid"]
    code: str = ""
    advert: CapacityAdvert | None = None


class AdvertTable:
    """The adverts of other peers, by peer id; at most `most` of them. `clock` returns the Unix time in seconds."""

    def __init__(
        self,
        opener: EnvelopeOpener,
        *,
        own_id: str = "",
        most: int = 1024,
        clock: Callable[[], float] = time.time,
        on_new: Callable[[CapacityAdvert], None] = lambda advert: None,
        on_own: Callable[[CapacityAdvert], None] = lambda advert: None,
        trusts: Callable[[str], bool] = lambda peer_id: False,
        rng: random.Random | None = None,
    ) -> None:
        """Make an empty table. Adverts of the peer `own_id` are not kept; `on_own` is called with each.

        `on_new` is called with every advert that is kept. `trusts` says whether this peer knows another one by its
        answers; it must not block. `rng` chooses among the adverts that are worth least.
        """
        self._opener = opener
        self._own_id = own_id
        self._most = most
        self._clock = clock
        self._on_new = on_new
        self._on_own = on_own
        self._trusts = trusts
        self._retention = AdvertRetention(most, rng)
        self._held: dict[str, HeldAdvert] = {}
        # Many peers send the same bytes. They are checked once.
        self._known: dict[bytes, HeldAdvert] = {}
        self._order: list[str] = []
        self._ends: list[tuple[float, str, int]] = []

    def __len__(self) -> int:
        return len(self._held)

    def get(self, peer_id: str) -> HeldAdvert | None:
        """The advert of one peer, or None if there is none or it has expired."""
        held = self._held.get(peer_id)
        return held if held is not None and held.advert.expires_at >= self._clock() else None

    # Taking in

    def accept(self, raw: bytes, *, sender: str | None = None, network: str = "") -> Verdict:
        """Keep an advert if it is valid and new. If `sender` is given, only an advert of this peer is valid. `network`
        is the address of the peer that brought the advert, empty where it is not known. Raises nothing.
        """
        try:
            return self._accept(raw, sender, network)
        except ProtocolError as error:
            return Verdict("invalid", error.code)

    def _accept(self, raw: bytes, sender: str | None, network: str) -> Verdict:
        now = self._clock()
        if raw in self._known:
            return self._again(raw, sender)
        advert = open_advert(raw, self._opener, now=now)
        if sender is not None and advert.peer_id != sender:
            raise AdvertError(f"the advert is {advert.peer_id}'s", code="not_your_advert")
        if advert.peer_id == self._own_id:
            self._on_own(advert)
        held = self._held.get(advert.peer_id)
        if advert.peer_id == self._own_id or (held is not None and held.advert.sequence >= advert.sequence):
            return Verdict("old", "old_advert", advert)
        self._let_go_of_expired(now)
        if held is None and len(self._held) >= self._most:
            self._drop(self._retention.least())
        self._keep(HeldAdvert(advert, raw))
        trusted = self._trusts(advert.peer_id)
        self._retention.heard(advert.peer_id, network, trusted=trusted, direct=sender is not None, now=now)
        self._on_new(advert)
        return Verdict("new", advert=advert)

    def _again(self, raw: bytes, sender: str | None) -> Verdict:
        advert = self._known[raw].advert
        if sender is not None and advert.peer_id != sender:
            raise AdvertError(f"the advert is {advert.peer_id}'s", code="not_your_advert")
        return Verdict("old", advert=advert)

    def forget(self, peer_id: str) -> None:
        """Drop the advert of a peer, for example of one that has left."""
        if peer_id in self._held:
            self._drop(peer_id)

    def _keep(self, held: HeldAdvert) -> None:
        peer_id = held.advert.peer_id
        before = self._held.get(peer_id)
        if before is None:
            insort(self._order, peer_id)
        else:
            del self._known[before.raw]
        self._held[peer_id] = self._known[held.raw] = held
        heapq.heappush(self._ends, _end(held))
        if len(self._ends) > _HEAP_SLACK * self._most:
            self._ends = [_end(one) for one in self._held.values()]
            heapq.heapify(self._ends)

    def _drop(self, peer_id: str) -> None:
        self._retention.forget(peer_id)
        del self._known[self._held.pop(peer_id).raw]
        del self._order[bisect_right(self._order, peer_id) - 1]
        self._pop_replaced()

    def _let_go_of_expired(self, now: float) -> None:
        self._pop_replaced()
        while self._ends and self._ends[0][0] < now:
            self._drop(self._ends[0][1])

    def _pop_replaced(self) -> None:
        # Now the top of the heap belongs to an advert that the table holds.
        while self._ends:
            held = self._held.get(self._ends[0][1])
            if held is not None and _end(held) == self._ends[0]:
                return
            heapq.heappop(self._ends)

    # Looking up

    def some(self, most: int) -> tuple[HeldAdvert, ...]:
        """At most `most` adverts, chosen at random."""
        now = self._clock()
        chosen = random.sample(self._order, min(most, len(self._order)))
        return tuple(held for held in map(self._held.__getitem__, chosen) if held.advert.expires_at >= now)

    def page(
        self, after: str, *, limit: int, examine: int, demand: Demand | None = None
    ) -> tuple[tuple[HeldAdvert, ...], str]:
        """At most `limit` adverts after a peer id, and the peer id after which the next page begins ("" after the last
        page).

        With a `demand`, only adverts with enough free capacity are returned. At most `examine` adverts are examined.
        """
        now = self._clock()
        found: list[HeldAdvert] = []
        first = bisect_right(self._order, after)
        for peer_id in self._order[first : first + examine]:
            held = self._held[peer_id]
            after = peer_id
            if held.advert.expires_at >= now and (demand is None or would_fit(held.advert.free, demand)):
                found.append(held)
                if len(found) == limit:
                    break
        return tuple(found), after if self._order and after < self._order[-1] else ""

    def matching(self, ensemble: EnsembleRequest) -> tuple[HeldAdvert, ...]:
        """The adverts of peers that could have held at least one node: the tightest fit first; among equals, the
        freshest.

        It examines the whole table.
        """
        now, excluded = self._clock(), frozenset(ensemble.peer_exclusion)
        found: list[tuple[float, float, str]] = []
        for peer_id, held in self._held.items():
            if peer_id in excluded or held.advert.expires_at < now:
                continue
            fits = [
                _tightness(held.advert.free, node.resources)
                for node in ensemble.request
                if could_hold(held.advert, node)
            ]
            if fits:
                # Rounded to tenths, so that among peers that fit about equally well the freshest figure comes first.
                found.append((-round(max(fits), 1), held.age(now), peer_id))
        return tuple(self._held[peer_id] for _, _, peer_id in sorted(found))

    def share_able(self, ensemble: EnsembleRequest, *, examine: int) -> float:
        """The share (0 to 1) of peers that could hold at least one node, from the examined adverts; 1 if there are
        none.
        """
        looked_at = tuple(islice(self._held.values(), examine))
        able = sum(any(could_hold(held.advert, node) for node in ensemble.request) for held in looked_at)
        return able / len(looked_at) if looked_at else 1.0


def _end(held: HeldAdvert) -> tuple[float, str, int]:
    return held.advert.expires_at, held.advert.peer_id, held.advert.sequence


def _tightness(free: FreeResources, demand: Demand) -> float:
    """The part of the free capacity that the demand would take, averaged over the demanded dimensions: 0 to 1."""
    shares = [
        asked / there
        for asked, there in (
            (demand.cpu.cores.millicores, free.cpu.cores.millicores),
            (demand.ram.size, free.ram.size),
            (demand.disk.size, free.disk.size),
            (sum(gpu.vram for gpu in demand.gpus), sum(gpu.vram for gpu in free.gpus)),
        )
        if asked and there
    ]
    return math.fsum(shares) / len(shares) if shares else 0.0
