"""The number of peers is estimated cheaply, and no peer can count for more by its choice of id."""

from __future__ import annotations

import pytest

from dms_peer.discovery.adverts.peer_count import PeerCount


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("peers", [0, 1, 10, 255])
def test_few_peers_are_counted_exactly(peers: int) -> None:
    count = PeerCount(clock=Clock())
    for _ in range(3):
        for number in range(peers):
            count.heard(f"peer-{number}")
    assert count.estimate() == peers


@pytest.mark.parametrize("peers", [1000, 10_000])
def test_many_peers_are_estimated(peers: int) -> None:
    count = PeerCount(clock=Clock(), k=256)
    for number in range(peers):
        count.heard(f"peer-{number}")
    # Five times the standard error, which is 1 / sqrt(k - 2).
    assert abs(count.estimate() - peers) < 5 * peers / 254**0.5


def test_memory_does_not_grow_with_the_peers() -> None:
    count = PeerCount(clock=Clock(), k=16)
    for number in range(10_000):
        count.heard(f"peer-{number}")
    assert len(count._now._kept) == len(count._now._largest_first) == 16


def test_who_is_silent_for_two_periods_is_gone() -> None:
    clock = Clock()
    count = PeerCount(clock=clock, period=100)
    for number in range(20):
        count.heard(f"peer-{number}")
    clock.now = 150
    count.heard("peer-1")
    assert count.estimate() == 20
    clock.now = 250
    assert count.estimate() == 1
    clock.now = 1000
    assert count.estimate() == 0


def test_two_peers_do_not_agree_on_what_counts() -> None:
    one, other = PeerCount(clock=Clock(), k=16), PeerCount(clock=Clock(), k=16)
    for number in range(1000):
        one.heard(f"peer-{number}")
        other.heard(f"peer-{number}")
    assert one._now._kept != other._now._kept
