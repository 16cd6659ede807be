"""Adverts are accepted only with a proof, and the table keeps the right ones."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from dms_protocols.adverts.adverts import CLOCK_SKEW, AdvertTable, could_hold, open_advert, seal_advert
from dms_protocols.errors import AdvertError, EnvelopeError
from dms_protocols.messages.adverts import (
    ADVERT_DOMAIN,
    ADVERT_PAYLOAD_TYPE,
    LONGEST_ADVERT_TTL,
    MAX_ADVERT_SIZE,
    CapacityAdvert,
)
from dms_protocols.messages.bid import EnsembleRequest, Location, NodeRequest, Place
from dms_protocols.wire.cbor import encode_deterministic
from dms_protocols.wire.conversion import sealed_bytes, to_map
from dms_resources.components import CPU, GPU, RAM, Disk, FreeResources
from dms_resources.demands import PortDemand
from dms_resources.units import Cores

GIB = 2**30
NOW = 1_700_000_000.0


class Signer:
    """Any number of peers whose envelopes name them: the table does not look inside an envelope."""

    def __init__(self, peer_id: str) -> None:
        self.peer_id = peer_id

    def sign(self, domain: str, payload_type: bytes, payload: bytes) -> bytes:
        return msgspec.msgpack.encode([self.peer_id, domain, payload_type, payload])


class Opener:
    """Counts what it opens."""

    def __init__(self) -> None:
        self.opened = 0

    def open(self, raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
        self.opened += 1
        try:
            peer_id, its_domain, its_type, payload = msgspec.msgpack.decode(raw, type=tuple[str, str, bytes, bytes])
        except (msgspec.DecodeError, ValueError):
            raise EnvelopeError("unreadable") from None
        if (its_domain, its_type) != (domain, payload_type):
            raise EnvelopeError("for something else", code="bad_signature")
        return peer_id, payload


def free(*, cores: float = 8, ram: int = 32, disk: int = 100, gpus: tuple[int, ...] = ()) -> FreeResources:
    return FreeResources(
        cpu=CPU(cores=Cores.of(cores)),
        ram=RAM(size=ram * GIB),
        disk=Disk(size=disk * GIB),
        gpus=tuple(GPU(uuid=f"GPU-{number}", vram=gib * GIB) for number, gib in enumerate(gpus)),
        ports=10,
        onboarded=True,
        draining=False,
        simulated=False,
    )


def advert(peer_id: str = "a", *, sequence: int = 1, issued_at: float = NOW, ttl: float = 600, **fields: Any) -> Any:
    fields.setdefault("free", free())
    return CapacityAdvert(peer_id=peer_id, addrs=(), sequence=sequence, issued_at=issued_at, ttl=ttl, **fields)


def sealed(peer_id: str = "a", **fields: Any) -> bytes:
    return seal_advert(advert(peer_id, **fields), Signer(peer_id))


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
def table(opener: Opener, clock: Clock) -> AdvertTable:
    return AdvertTable(opener, own_id="me", most=4, clock=clock)


def ensemble(*nodes: NodeRequest, **fields: Any) -> EnsembleRequest:
    return EnsembleRequest(id="e", nonce=1, deadline=NOW, request=nodes, **fields)


# Opening


def test_what_was_sealed_is_opened() -> None:
    one = advert(location=Place(country="FR"), executors=("docker",))
    assert open_advert(seal_advert(one, Signer("a")), Opener(), now=NOW) == one


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"issued_at": NOW + CLOCK_SKEW + 1}, "advert_ahead"),
        ({"issued_at": NOW - 601}, "advert_expired"),
        ({"issued_at": float(2**60), "ttl": 1.0}, "advert_ahead"),
        ({"issued_at": -float(2**60)}, "advert_expired"),
    ],
)
def test_a_time_that_is_not_now_is_refused(fields: dict[str, float], code: str) -> None:
    with pytest.raises(AdvertError) as error:
        open_advert(sealed(**fields), Opener(), now=NOW)
    assert error.value.code == code


def test_a_clock_may_be_a_little_ahead() -> None:
    assert open_advert(sealed(issued_at=NOW + CLOCK_SKEW - 1), Opener(), now=NOW)


@pytest.mark.parametrize("ttl", [0.0, -1.0, LONGEST_ADVERT_TTL + 1])
def test_a_time_to_live_has_bounds(ttl: float) -> None:
    with pytest.raises(EnvelopeError, match="ttl"):
        open_advert(sealed(ttl=ttl), Opener(), now=NOW)


def test_an_advert_names_its_signer() -> None:
    raw = seal_advert(advert("a"), Signer("b"))
    with pytest.raises(AdvertError) as error:
        open_advert(raw, Opener(), now=NOW)
    assert error.value.code == "bad_advert"


def test_a_signature_for_something_else_is_none_here() -> None:
    raw = Signer("a").sign("dms-bid", ADVERT_PAYLOAD_TYPE, sealed_bytes(advert("a")))
    with pytest.raises(EnvelopeError):
        open_advert(raw, Opener(), now=NOW)


def test_a_large_advert_is_not_even_opened(opener: Opener) -> None:
    many = tuple(GPU(uuid=f"GPU-{number}" + "x" * 200, vram=GIB) for number in range(60))
    large = advert(free=msgspec.structs.replace(free(), gpus=many))
    with pytest.raises(AdvertError):
        seal_advert(large, Signer("a"))
    raw = Signer("a").sign(ADVERT_DOMAIN, ADVERT_PAYLOAD_TYPE, sealed_bytes(large))
    assert len(raw) > MAX_ADVERT_SIZE
    with pytest.raises(AdvertError):
        open_advert(raw, opener, now=NOW)
    assert opener.opened == 0


def test_too_many_gpus_are_refused() -> None:
    said = to_map(advert())
    said["free"] |= to_map(free(gpus=(1,) * 65))
    raw = Signer("a").sign(ADVERT_DOMAIN, ADVERT_PAYLOAD_TYPE, encode_deterministic(said))
    with pytest.raises(EnvelopeError, match="GPUs"):
        open_advert(raw, Opener(), now=NOW)


def test_nothing_but_a_verdict_comes_of_garbage(table: AdvertTable) -> None:
    rng = random.Random(5)
    good = sealed()
    for _ in range(2000):
        raw = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        table.accept(bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.3 else raw))
        table.accept(rng.randbytes(rng.randrange(100)))
    assert len(table) <= 4


# The table


def test_a_higher_sequence_replaces(table: AdvertTable) -> None:
    assert table.accept(sealed(sequence=1)).outcome == "new"
    assert table.accept(sealed(sequence=2, free=free(cores=1))).outcome == "new"
    late = table.accept(sealed(sequence=1))
    assert (late.outcome, late.code) == ("old", "old_advert")
    held = table.get("a")
    assert held is not None
    assert held.advert.sequence == 2
    assert len(table) == 1


def test_the_same_advert_costs_no_second_look(table: AdvertTable, opener: Opener) -> None:
    raw = sealed()
    table.accept(raw)
    assert table.accept(raw).outcome == "old"
    assert opener.opened == 1


def test_ones_own_advert_is_no_news(table: AdvertTable) -> None:
    assert table.accept(sealed("me")).outcome == "old"
    assert len(table) == 0


def test_a_sender_brings_its_own_and_no_other(table: AdvertTable) -> None:
    assert table.accept(sealed("a"), sender="b").code == "not_your_advert"
    assert len(table) == 0
    assert table.accept(sealed("a"), sender="a").outcome == "new"
    assert table.accept(sealed("a"), sender="b").code == "not_your_advert"
    assert table.accept(sealed("a"), sender="a").code == ""


def test_what_has_expired_is_gone(table: AdvertTable, clock: Clock) -> None:
    table.accept(sealed("a", ttl=10))
    table.accept(sealed("b", ttl=100))
    clock.now += 50
    assert table.get("a") is None
    assert table.page("", limit=10, examine=10)[0][0].advert.peer_id == "b"
    assert [one.advert.peer_id for one in table.matching(ensemble(NodeRequest(node_id="n")))] == ["b"]
    table.accept(sealed("c"))
    assert len(table) == 2


def test_renewing_for_ever_keeps_the_table_small(table: AdvertTable) -> None:
    for sequence in range(1, 1000):
        for peer_id in "ab":
            assert table.accept(sealed(peer_id, sequence=sequence)).outcome == "new"
    assert len(table) == 2
    assert len(table._ends) <= 17


def test_the_table_is_what_a_plain_one_would_be(opener: Opener, clock: Clock) -> None:
    rng = random.Random(7)
    table, plain = AdvertTable(opener, most=1000, clock=clock), {}
    for _ in range(3000):
        clock.now += rng.random()
        peer_id, sequence, ttl = f"p{rng.randrange(60)}", rng.randrange(50), rng.randrange(1, 60)
        if rng.random() < 0.05:
            table.forget(peer_id)
            plain.pop(peer_id, None)
            continue
        outcome = table.accept(sealed(peer_id, sequence=sequence, ttl=ttl, issued_at=clock.now)).outcome
        plain = {one: (number, end) for one, (number, end) in plain.items() if end >= clock.now or one == peer_id}
        # An expired advert is replaced only by a later one, until it is removed.
        if outcome == "new":
            plain[peer_id] = (sequence, clock.now + ttl)
        alive = {one for one, (_, end) in plain.items() if end >= clock.now}
        page, after = table.page("", limit=100, examine=100)
        assert {one.advert.peer_id for one in page} == alive
        assert after == ""
        assert [one.advert.peer_id for one in page] == sorted(alive)


def test_pages_follow_each_other(opener: Opener, clock: Clock) -> None:
    table = AdvertTable(opener, clock=clock)
    for number in range(25):
        table.accept(sealed(f"p{number:02}", free=free(cores=number)))
    seen, after, pages = [], "", 0
    while True:
        page, after = table.page(after, limit=4, examine=10)
        seen += [one.advert.peer_id for one in page]
        pages += 1
        if not after:
            break
    assert seen == [f"p{number:02}" for number in range(25)]
    assert pages == 7


def test_a_page_looks_at_a_bounded_part(opener: Opener, clock: Clock, node: Any) -> None:
    table = AdvertTable(opener, clock=clock)
    for number in range(25):
        table.accept(sealed(f"p{number:02}", free=free(cores=number)))
    page, after = table.page("", limit=4, examine=10, demand=node(cores=20).resources)
    assert page == ()
    assert after == "p09"
    page, after = table.page("p18", limit=4, examine=10, demand=node(cores=20).resources)
    assert [one.advert.peer_id for one in page] == ["p20", "p21", "p22", "p23"]


def test_some_are_chosen_by_chance(opener: Opener, clock: Clock) -> None:
    table = AdvertTable(opener, clock=clock)
    assert table.some(3) == ()
    for number in range(20):
        table.accept(sealed(f"p{number:02}", ttl=10 if number < 10 else 100))
    assert len({one.advert.peer_id for _ in range(100) for one in table.some(3)}) > 10
    assert len(table.some(3)) == 3
    clock.now += 50
    assert {one.advert.peer_id for one in table.some(100)} == {f"p{number}" for number in range(10, 20)}


# Matching


def test_matching_names_able_peers_the_tightest_first(table: AdvertTable, node: Any) -> None:
    table.accept(sealed("small", free=free(cores=1)))
    table.accept(sealed("tight", free=free(cores=4, ram=8)))
    table.accept(sealed("roomy", free=free(cores=64, ram=512)))
    found = table.matching(ensemble(node(cores=4, ram=8)))
    assert [one.advert.peer_id for one in found] == ["tight", "roomy"]


def test_of_equal_fits_the_freshest_is_first(table: AdvertTable, clock: Clock, node: Any) -> None:
    table.accept(sealed("older", issued_at=NOW - 100))
    table.accept(sealed("newer", issued_at=NOW - 10))
    clock.now += 5
    found = table.matching(ensemble(node()))
    assert [(one.advert.peer_id, one.age(clock.now)) for one in found] == [("newer", 15.0), ("older", 105.0)]


def test_one_node_that_fits_is_enough(table: AdvertTable, node: Any) -> None:
    table.accept(sealed("a", free=free(gpus=(24,))))
    assert table.matching(ensemble(node("n1", cores=100), node("n2", gpus=(16,))))
    assert not table.matching(ensemble(node("n1", cores=100), node("n2", gpus=(16, 16))))


def test_excluded_peers_are_not_named(table: AdvertTable, node: Any) -> None:
    table.accept(sealed("a"))
    assert not table.matching(ensemble(node(), peer_exclusion=("a",)))


def test_what_the_advert_says_of_the_place_and_the_executors_counts(node: Any) -> None:
    french = advert(location=Place(continent="Europe", country="FR"), executors=("docker",))
    assert could_hold(french, node(location=Location(accept=(Place(country="FR"),)), executors=("docker",)))
    assert not could_hold(french, node(location=Location(reject=(Place(country="FR"),))))
    assert not could_hold(french, node(executors=("firecracker",)))
    assert could_hold(advert(), node(executors=("firecracker",)))
    assert not could_hold(advert(), node(public_ports=PortDemand(dynamic=11)))
