"""Which addresses of a peer are dialled, in which order, and when again."""

from __future__ import annotations

import random

import pytest
import trio

from dms_host.errors import DialError
from dms_host.keys.identity import new_identity
from dms_peer.connections.limits import ConnectionLimits
from dms_peer.connections.routes import Routes

PEER = new_identity().peer_id
RELAY = new_identity().peer_id
FAILURE = DialError("nobody listens", code="refused", address=PEER, hint="start it")


def at(*ports: int) -> list[str]:
    return [f"/ip4/192.0.2.1/tcp/{port}/p2p/{PEER}" for port in ports]


@pytest.fixture
def routes() -> Routes:
    return Routes(ConnectionLimits(addresses=3, peers=10, backoff_first=1, backoff_longest=60), random.Random(1))


def ports(routes: Routes, addresses: list[str]) -> list[int]:
    return [target.port for target in routes.order(PEER, addresses)]


def fail(routes: Routes, addresses: list[str], peer_id: str = PEER) -> None:
    routes.failed(peer_id, routes.order(peer_id, addresses), FAILURE)


def backoff(routes: Routes, addresses: list[str]) -> float:
    with pytest.raises(DialError) as caught:
        routes.order(PEER, addresses)
    assert caught.value.code == "backing_off"
    assert "nobody listens" in caught.value.message
    assert caught.value.retry_after is not None
    return caught.value.retry_after


async def test_where_it_was_reached_comes_first(routes: Routes) -> None:
    assert ports(routes, at(1, 2, 3)) == [1, 2, 3]
    routes.reached(PEER, routes.order(PEER, at(1, 2, 3))[2])
    assert ports(routes, at(1, 2, 3)) == [3, 1, 2]
    assert ports(routes, []) == [3]
    # An existing connection says nothing about addresses.
    routes.reached(PEER, None)
    assert ports(routes, at(1)) == [3, 1]


async def test_each_failure_doubles_the_wait_up_to_the_longest(routes: Routes, autojump_clock) -> None:
    for expected in (1, 2, 4, 8, 16, 32, 60, 60):
        fail(routes, at(1))
        wait = backoff(routes, at(1))
        assert expected / 2 <= wait <= expected
        await trio.sleep(wait + 0.001)
    routes.reached(PEER, None)
    fail(routes, at(1))
    assert backoff(routes, at(1)) <= 1


async def test_those_who_lost_the_same_peer_do_not_come_back_together() -> None:
    waits = set()
    for seed in range(20):
        routes = Routes(ConnectionLimits(), random.Random(seed))
        fail(routes, at(1))
        waits.add(backoff(routes, at(1)))
    assert len(waits) == 20


async def test_a_new_address_ends_the_wait_and_comes_before_those_that_failed(routes: Routes) -> None:
    routes.reached(PEER, routes.order(PEER, at(1))[0])
    fail(routes, at(1))
    assert routes.backing_off == 1
    assert not routes.has_new(PEER, at(1))
    assert routes.has_new(PEER, at(1, 2))
    assert ports(routes, at(1, 2)) == [2, 1]
    fail(routes, at(1, 2))
    backoff(routes, at(1, 2))
    routes.reached(PEER, routes.order(PEER, at(3))[0])
    assert routes.backing_off == 0
    assert ports(routes, at(1, 2)) == [3, 1, 2]


async def test_whoever_names_ever_new_addresses_fills_no_memory(routes: Routes) -> None:
    for port in range(1, 200):
        fail(routes, at(port))
    assert len(routes._routes[PEER].tried) <= 4 * 3


async def test_relayed_addresses_come_last(routes: Routes) -> None:
    relayed = f"/ip4/192.0.2.9/tcp/9/p2p/{RELAY}/p2p-circuit/p2p/{PEER}"
    assert ports(routes, [relayed, *at(1, 2)]) == [1, 2, 9]
    routes.reached(PEER, routes.order(PEER, [relayed])[0])
    assert ports(routes, at(1, 2)) == [1, 2, 9]


async def test_the_table_is_bounded_and_the_oldest_give_way(routes: Routes) -> None:
    peers = [new_identity().peer_id for _ in range(30)]
    for peer_id in peers:
        fail(routes, [f"/ip4/192.0.2.1/tcp/1/p2p/{peer_id}"], peer_id)
    assert len(routes) == 10
    assert list(routes._routes) == peers[-10:]
