"""A flood of adverts displaces the flood itself, whatever the adverts claim."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dms_protocols.adverts.adverts import AdvertTable, seal_advert
from dms_protocols.adverts.retention import AdvertRetention
from dms_protocols.messages.adverts import LONGEST_ADVERT_TTL, CapacityAdvert
from dms_protocols.wire.cbor import decode_map
from dms_resources.components import CPU, RAM, Disk, FreeResources
from dms_resources.units import GIB, Cores

NOW = 1_700_000_000.0
MOST = 128
HONEST = tuple(f"honest{number}" for number in range(40))
FREE = FreeResources(
    cpu=CPU(cores=Cores(8000)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=(), ports=9, onboarded=True,
    draining=False, simulated=False,
)  # fmt: skip


class PlainSigner:
    """Seals nothing: what the table keeps does not depend on signatures."""

    peer_id = ""

    def sign(self, domain: str, payload_type: bytes, payload: bytes) -> bytes:
        return payload


class PlainOpener:
    """Takes every payload as signed by the peer that it names."""

    def open(self, raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
        return str(decode_map(raw)["peer_id"]), raw


class Town:
    """A table, its clock, and the peers that fill it."""

    def __init__(self, trusts: Callable[[str], bool] = lambda peer_id: False, most: int = MOST) -> None:
        self.now = NOW
        self.rng = random.Random(3)
        self.table = AdvertTable(PlainOpener(), most=most, clock=lambda: self.now, trusts=trusts, rng=random.Random(5))
        self.sequence = 0

    def bring(self, peer_id: str, network: str, *, ttl: float = 600.0, sender: str | None = None) -> None:
        self.sequence += 1
        advert = CapacityAdvert(
            peer_id=peer_id, addrs=(), sequence=self.sequence, issued_at=self.now, ttl=ttl, free=FREE
        )
        raw = seal_advert(advert, PlainSigner())
        assert self.table.accept(raw, sender=sender, network=network).outcome == "new"

    def minute_of_flood(self, flood: Callable[[int], None], network_of: Callable[[str], str]) -> None:
        """Ten adverts of the attacker each second; each honest provider advertises once in the minute."""
        due = list(HONEST)
        self.rng.shuffle(due)
        for tick in range(600):
            self.now += 0.1
            flood(tick)
            if tick % 15 == 0 and due:
                honest = due.pop()
                self.bring(honest, network_of(honest))

    def held(self) -> list[str]:
        return [peer_id for peer_id in HONEST if self.table.get(peer_id) is not None]


def own_network(peer_id: str) -> str:
    return f"network of {peer_id}"


def one_neighbour(peer_id: str) -> str:
    return "neighbour"


def test_one_address_with_ever_new_keys_and_long_lives_displaces_itself() -> None:
    """The attack as it was found: adverts for six hours push out honest ones for ten minutes."""
    town = Town()

    def flood(tick: int) -> None:
        town.bring(f"x{town.sequence}", "attacker", ttl=LONGEST_ADVERT_TTL)

    for _ in range(3):
        town.minute_of_flood(flood, own_network)
        assert town.held() == list(HONEST)
    assert len(town.table) == MOST


def test_one_address_that_renews_its_keys_displaces_itself() -> None:
    town = Town()
    keys = [f"x{number}" for number in range(MOST)]

    def flood(tick: int) -> None:
        town.bring(keys[town.sequence % MOST], "attacker", ttl=LONGEST_ADVERT_TTL)

    for _ in range(3):
        town.minute_of_flood(flood, own_network)
        assert town.held() == list(HONEST)


def test_new_keys_through_an_honest_neighbour_displace_no_provider_that_endures() -> None:
    """By gossip, everything comes from the neighbour, honest or not."""
    town = Town()
    for _ in range(3):
        town.minute_of_flood(lambda tick: None, one_neighbour)

    def flood(tick: int) -> None:
        town.bring(f"x{town.sequence}", "neighbour", ttl=LONGEST_ADVERT_TTL)

    for _ in range(3):
        town.minute_of_flood(flood, one_neighbour)
        assert town.held() == list(HONEST)


def test_a_newcomer_is_heard_during_a_flood() -> None:
    town = Town()
    for _ in range(4 * MOST):
        town.bring(f"x{town.sequence}", "attacker", ttl=LONGEST_ADVERT_TTL)
    town.bring("newcomer", "elsewhere", ttl=60.0)
    for _ in range(4 * MOST):
        town.bring(f"x{town.sequence}", "attacker", ttl=LONGEST_ADVERT_TTL)
    assert town.table.get("newcomer") is not None


def test_an_attacker_that_repeats_a_providers_advert_does_not_take_it_into_its_share() -> None:
    """It brings the first advert of a provider and then floods; the provider itself comes within the minute."""
    town = Town()
    town.bring("honest0", "attacker")
    town.bring("honest0", "honest", sender="honest0")
    for _ in range(8 * MOST):
        town.bring(f"x{town.sequence}", "attacker", ttl=LONGEST_ADVERT_TTL)
        town.bring("honest0", "attacker")
    assert town.held() == ["honest0"]


def test_peers_that_answered_are_dropped_for_no_stranger_whatever_their_networks() -> None:
    town = Town(trusts=lambda peer_id: peer_id.startswith("honest"))
    for honest in HONEST:
        town.bring(honest, "shared")
    for number in range(8 * MOST):
        # An attacker with a network for each key.
        town.bring(f"x{number}", f"network {number}", ttl=LONGEST_ADVERT_TTL)
    assert town.held() == list(HONEST)


def test_peers_that_answered_leave_a_quarter_to_strangers() -> None:
    town = Town(trusts=lambda peer_id: peer_id.startswith("known"))
    for number in range(4 * MOST):
        town.bring(f"known{number}", "somewhere")
        town.bring(f"x{number}", f"network {number}")
    page, _ = town.table.page("", limit=MOST, examine=MOST)
    strangers = [one for one in page if one.advert.peer_id.startswith("x")]
    assert MOST // 4 <= len(strangers) <= MOST // 4 + 1


def test_a_peer_that_answers_gains_and_one_that_fails_loses_its_rank() -> None:
    trusted = {"a"}
    town = Town(trusts=trusted.__contains__, most=2)
    town.bring("a", "")
    town.bring("b", "")
    town.bring("c", "")
    assert town.table.get("a") is not None
    trusted.clear()
    town.bring("a", "")
    for number in range(20):
        town.bring(f"x{number}", "")
    assert town.table.get("a") is None


def test_nobody_is_left_when_all_are_forgotten() -> None:
    rng = random.Random(1)
    retention = AdvertRetention(16, rng)
    alive: set[str] = set()
    for step in range(5000):
        peer_id = f"p{rng.randrange(40)}"
        if rng.random() < 0.4:
            retention.forget(peer_id)
            alive.discard(peer_id)
        else:
            direct, trusted = rng.random() < 0.3, rng.random() < 0.2
            network = f"n{rng.randrange(5)}"
            retention.heard(peer_id, network, trusted=trusted, direct=direct, now=float(step))
            alive.add(peer_id)
        if alive:
            assert retention.least() in alive
    for peer_id in alive:
        retention.forget(peer_id)
    with pytest.raises(ValueError, match="no advert"):
        retention.least()
    empty: Any = (retention._networks, retention._origins)
    assert empty == ({}, {})
