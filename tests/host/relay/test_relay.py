"""Reaching a peer through a relay: secured end to end, within limits, and closed in an orderly way."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from multiaddr import Multiaddr

from dms_host import (
    ConnectionGater,
    HostLimits,
    RelayLimits,
    attach_protocols,
    dial,
    dial_any,
    host_addresses,
    open_host,
    open_stream,
    parse_peer_address,
)
from dms_host.errors import AddressError, DialError
from dms_host.keys.identity import new_identity
from dms_host.relay.messages import HOP, STOP, read_message, write_message
from dms_host.swarm import dialing
from dms_host.yamux.connection import BoundedYamux

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PING = "/ipfs/ping/1.0.0"
SOMEBODY = new_identity(b"somebody".ljust(32)).peer_id
ROOMY = RelayLimits()


def peer_id_of(host) -> str:
    return host.get_id().to_base58()


@asynccontextmanager
async def open_relay(limits: RelayLimits = ROOMY, **options):
    async with open_host(new_identity(), [LOOPBACK], relay=limits, **options) as host:
        yield host


@asynccontextmanager
async def open_hidden(at, limits: HostLimits | None = None, **options):
    """A host that does not listen and has a reservation at the relay `at`."""
    async with open_host(new_identity(), limits=limits, reserve_at=[host_addresses(at)[0]], **options) as host:
        with trio.fail_after(10):
            while not host.relayed_addresses:  # noqa: ASYNC110  # nothing announces it
                await trio.sleep(0.005)
        yield host


@pytest.fixture
async def relay():
    async with open_relay() as host:
        yield host


@pytest.fixture
async def hidden(relay):
    async with open_hidden(relay) as host:
        yield host


async def ping(host, peer_id: str, data: bytes = bytes(32)) -> None:
    async with await open_stream(host, peer_id, [PING]) as stream:
        await stream.send_all(data)
        assert await stream.receive_some() == data


async def refusal(host, address: str) -> DialError:
    with pytest.raises(DialError) as caught:
        await dial(host, address)
    return caught.value


def connection_to(host, peer):
    (connection,) = host.get_network().get_connections(peer.get_id())
    return connection


# Dialling


async def test_a_hidden_peer_is_reached_through_its_relay(relay, hidden, client) -> None:
    (address, *_) = host_addresses(hidden)
    assert address == f"{host_addresses(relay)[0]}/p2p-circuit/p2p/{peer_id_of(hidden)}"
    assert await dial(client, address) == peer_id_of(hidden)
    await ping(client, peer_id_of(hidden))
    await ping(hidden, peer_id_of(client))
    for ours, theirs in ((client, hidden), (hidden, client)):
        muxed = connection_to(ours, theirs).muxed_conn
        assert isinstance(muxed, BoundedYamux)
        assert muxed.get_connection_type() is ConnectionType.RELAYED
        assert muxed.negotiated_security_protocol == "/noise"
    assert hidden.swarm.inbound_connections == 1


async def test_the_relay_sees_noise(relay, hidden, client) -> None:
    heard = bytearray()

    class Listening:
        def __init__(self, stream) -> None:
            self._stream = stream

        async def receive_some(self, size: int) -> bytes:
            data = await self._stream.receive_some(size)
            heard.extend(data)
            return data

    copy = relay.relay._copy
    relay.relay._copy = lambda source, *others: copy(Listening(source), *others)
    await dial(client, host_addresses(hidden)[0])
    secret = b"a secret of thirty-two bytes....."[:32]
    await ping(client, peer_id_of(hidden), secret)
    assert len(heard) > 500
    assert secret not in heard
    # The relay sees the handshake itself, and nothing after it.
    assert heard.count(b"/noise") > 0
    assert b"ping" not in heard
    assert b"yamux" not in heard


async def test_a_relay_that_connects_to_somebody_else_is_found_out(relay, hidden, client) -> None:
    async with open_hidden(relay) as other:
        reach = relay.relay._reach
        relay.relay._reach = lambda source, target: reach(source, peer_id_of(other))
        assert (await refusal(client, host_addresses(hidden)[0])).code == "wrong_peer"
    assert hidden.get_id() not in client.get_connected_peers()


async def test_a_private_network_goes_through_its_relays_too() -> None:
    key = bytes(range(32))
    async with (
        open_relay(psk=key) as relay,
        open_hidden(relay, psk=key) as hidden,
        open_host(new_identity(), psk=key) as caller,
    ):
        await dial(caller, host_addresses(hidden)[0])
        await ping(caller, peer_id_of(hidden))


async def test_who_is_not_allowed_is_not_allowed_through_a_relay(relay, client, eventually) -> None:
    async with open_hidden(relay, gate=ConnectionGater(deny_peers=[peer_id_of(client)])) as hidden:
        assert (await refusal(client, host_addresses(hidden)[0])).code == "handshake_failed"
        await eventually(lambda: hidden.swarm.inbound_connections == 0)
    # The lists of addresses apply to the relay, which connects directly.
    async with open_hidden(relay, gate=ConnectionGater(allow_addresses=["127.0.0.0/8"])) as hidden:
        await dial(client, host_addresses(hidden)[0])
        await ping(client, peer_id_of(hidden))


async def test_a_relayed_address_is_used_when_all_direct_ones_failed(hidden, client) -> None:
    dead = f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_of(hidden)}"
    relayed = host_addresses(hidden)[0]
    reached = await dial_any(client, [parse_peer_address(text) for text in (relayed, dead)], deadline=10)
    assert reached.text == relayed
    assert connection_to(client, hidden).muxed_conn.get_connection_type() is ConnectionType.RELAYED


async def test_a_direct_address_is_tried_before_a_relayed_one(relay, client, eventually) -> None:
    async with open_host(new_identity(), [LOOPBACK], reserve_at=[host_addresses(relay)[0]]) as both:
        await eventually(lambda: both.relayed_addresses)
        direct, relayed = host_addresses(both)[0], both.relayed_addresses[0]
        reached = await dial_any(client, [parse_peer_address(text) for text in (relayed, direct)], deadline=10)
        assert reached.text == direct
        assert connection_to(client, both).muxed_conn.get_connection_type() is ConnectionType.DIRECT
        assert not client.get_network().get_connections(relay.get_id())


async def test_a_direct_address_that_says_nothing_does_not_keep_from_the_relay(hidden, client, monkeypatch) -> None:
    monkeypatch.setattr(dialing, "RELAY_PATIENCE", 0.1)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        silent = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{peer_id_of(hidden)}"
        targets = [parse_peer_address(text) for text in (silent, *host_addresses(hidden))]
        with trio.fail_after(5):
            reached = await dial_any(client, targets, deadline=60, attempt_deadline=60)
        assert reached == targets[1]


# Failures


async def test_a_peer_without_a_reservation_is_not_reached(relay, client) -> None:
    async with open_host(new_identity()) as visitor:
        await dial(visitor, host_addresses(relay)[0])
        error = await refusal(client, f"{host_addresses(relay)[0]}/p2p-circuit/p2p/{peer_id_of(visitor)}")
    assert error.code == "relay_failed"
    assert "no reservation" in error.message


async def test_a_reservation_ends_with_its_connection(relay, client, eventually) -> None:
    async with open_hidden(relay) as hidden:
        address = host_addresses(hidden)[0]
    await eventually(lambda: hidden.get_id() not in relay.get_connected_peers())
    assert "no reservation" in (await refusal(client, address)).message


async def test_a_host_is_no_relay_unless_it_is_told_to(server, client) -> None:
    error = await refusal(client, f"{host_addresses(server)[0]}/p2p-circuit/p2p/{SOMEBODY}")
    assert error.code == "protocol_not_supported"


async def test_a_relay_that_is_not_there(client) -> None:
    relay_address = f"/ip4/127.0.0.1/tcp/1/p2p/{new_identity().peer_id}"
    assert (await refusal(client, f"{relay_address}/p2p-circuit/p2p/{SOMEBODY}")).code == "refused"


async def test_a_cancelled_dial_leaves_no_circuit(relay, hidden, client, eventually) -> None:
    for steps in range(0, 300, 10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, client, host_addresses(hidden)[0])
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        for connection in client.get_network().get_connections(hidden.get_id()):
            await connection.close()
    await eventually(lambda: relay.relay.circuits == 0)
    await eventually(lambda: hidden.swarm.inbound_connections == 0)
    await eventually(lambda: not connection_to(relay, hidden).muxed_conn.streams)
    assert not relay.relay._circuits


# Limits


async def test_reservations_are_bounded(eventually) -> None:
    async with (
        open_relay(RelayLimits(max_reservations=1)) as relay,
        open_hidden(relay),
        open_host(new_identity()) as other,
    ):
        assert (await reserve(other, relay)).status == Status.RESERVATION_REFUSED
        assert relay.relay.reservations == 1


async def test_a_place_is_renewed_and_given_on(eventually) -> None:
    async with open_relay(RelayLimits(max_reservations=1)) as relay, open_host(new_identity()) as one:
        for _ in range(3):
            assert (await reserve(one, relay)).status == Status.OK
        # A reservation whose connection has ended is free.
        for connection in one.get_network().get_connections():
            await connection.close()
        await eventually(lambda: not relay.get_connected_peers())
        async with open_host(new_identity()) as other:
            assert (await reserve(other, relay)).status == Status.OK
            assert relay.relay.reservations == 1


async def test_reservations_of_one_machine_are_bounded(relay) -> None:
    async with (
        open_relay(RelayLimits(max_reservations_per_address=1)) as relay,
        open_host(new_identity()) as one,
        open_host(new_identity()) as other,
    ):
        assert (await reserve(one, relay)).status == Status.OK
        assert (await reserve(other, relay)).status == Status.RESERVATION_REFUSED


async def test_an_expired_reservation_is_none(client) -> None:
    async with open_relay(RelayLimits(reservation_ttl=0.1)) as relay, open_hidden(relay) as hidden:
        await trio.sleep(0.2)
        assert "no reservation" in (await refusal(client, host_addresses(hidden)[0])).message


async def test_nobody_reserves_in_the_name_of_others(relay, client) -> None:
    victim = ID.from_string(SOMEBODY).to_bytes()
    assert (await reserve(client, relay, PeerId(id=victim))).status == Status.OK
    assert list(relay.relay._places) == [peer_id_of(client)]


@pytest.mark.parametrize("bound", ["max_circuits", "max_circuits_per_peer", "max_circuits_per_address"])
async def test_circuits_are_bounded(bound, eventually) -> None:
    async with (
        open_relay(RelayLimits(**{bound: 1})) as relay,
        open_hidden(relay) as hidden,
        open_host(new_identity()) as first,
        open_host(new_identity()) as second,
    ):
        await dial(first, host_addresses(hidden)[0])
        error = await refusal(second, host_addresses(hidden)[0])
        assert error.code == "relay_failed"
        assert "resource limit exceeded" in error.message
        await connection_to(first, hidden).close()
        await eventually(lambda: relay.relay.circuits == 0)
        assert not relay.relay._circuits
        assert not relay.relay._circuits_from
        await dial(second, host_addresses(hidden)[0])


async def test_a_circuit_is_cut_when_its_time_is_over_though_nothing_moves(client, eventually) -> None:
    async with open_relay(RelayLimits(circuit_duration=0.5)) as relay, open_hidden(relay) as hidden:
        await dial(client, host_addresses(hidden)[0])
        await ping(client, peer_id_of(hidden))
        await eventually(lambda: not client.get_network().get_connections(hidden.get_id()))
        await eventually(lambda: not hidden.get_network().get_connections(client.get_id()))
        await eventually(lambda: relay.relay.circuits == 0)


async def test_a_circuit_is_cut_when_it_has_carried_enough(client, eventually) -> None:
    async with open_relay(RelayLimits(circuit_bytes=32 * 1024)) as relay, open_hidden(relay) as hidden:
        await dial(client, host_addresses(hidden)[0])
        stream = await open_stream(client, peer_id_of(hidden), [PING])
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(10):
            await echo_for_ever(stream)
        await eventually(lambda: relay.relay.circuits == 0)
        await eventually(lambda: not hidden.get_network().get_connections(client.get_id()))


async def echo_for_ever(stream) -> None:
    while True:
        await stream.send_all(bytes(32))
        if not await stream.receive_some():
            raise trio.BrokenResourceError


async def test_circuits_take_the_slots_of_other_connections(relay, eventually) -> None:
    async with (
        open_hidden(relay, HostLimits(max_inbound_per_address=1)) as hidden,
        open_host(new_identity()) as first,
        open_host(new_identity()) as second,
    ):
        await dial(first, host_addresses(hidden)[0])
        assert (await refusal(second, host_addresses(hidden)[0])).code == "handshake_failed"
        assert hidden.swarm.inbound_connections == 1
        await connection_to(first, hidden).close()
        await eventually(lambda: hidden.swarm.inbound_connections == 0)


# The protocol


async def hop_stream(host, relay):
    await dial(host, host_addresses(relay)[0])
    return await open_stream(host, peer_id_of(relay), [HOP])


async def reserve(host, relay, peer: PeerId | None = None) -> HopMessage:
    async with await hop_stream(host, relay) as stream:
        await write_message(stream, HopMessage(type=HopMessage.RESERVE, peer=peer))
        return await read_message(stream, HopMessage)


async def test_a_reservation_names_the_relay_and_its_bounds(relay, client) -> None:
    answer = await reserve(client, relay)
    assert (answer.limit.duration, answer.limit.data) == (600, 16 * 1024 * 1024)
    assert [parse_peer_address(str(one)).text for one in map(Multiaddr, answer.reservation.addrs)] == list(
        host_addresses(relay)
    )


async def test_each_direction_of_a_circuit_ends_by_itself(relay, client) -> None:
    """Raw streams: one side sends everything before the other sends anything."""

    async def answer_after_the_end(stream, peer_id: str) -> None:
        offer = await read_message(stream, StopMessage)
        assert (offer.type, ID(offer.peer.id).to_base58()) == (StopMessage.CONNECT, peer_id_of(client))
        assert offer.limit.data == ROOMY.circuit_bytes
        await write_message(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        heard = b""
        while data := await stream.receive_some():
            heard += data
        await stream.send_all(b"heard " + heard)

    async with (
        open_host(new_identity()) as raw,
        attach_protocols(raw, {STOP: answer_after_the_end}, stop_timeout=0.1),
    ):
        assert (await reserve(raw, relay)).status == Status.OK
        async with await hop_stream(client, relay) as stream:
            peer = PeerId(id=raw.get_id().to_bytes())
            await write_message(stream, HopMessage(type=HopMessage.CONNECT, peer=peer))
            answer = await read_message(stream, HopMessage)
            assert (answer.type, answer.status) == (HopMessage.STATUS, Status.OK)
            assert answer.limit.data == ROOMY.circuit_bytes
            await stream.send_all(b"all of it")
            await stream.send_eof()
            answered = b""
            with trio.fail_after(5):
                while data := await stream.receive_some():
                    answered += data
            assert answered == b"heard all of it"


async def test_a_circuit_that_is_cut_does_not_look_like_one_that_ended(client) -> None:
    seen = []

    async def hold(stream, peer_id: str) -> None:
        await read_message(stream, StopMessage)
        await write_message(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        seen.append(peer_id)

    async with (
        open_relay(RelayLimits(circuit_duration=0.3)) as relay,
        open_host(new_identity()) as raw,
        attach_protocols(raw, {STOP: hold}),
    ):
        assert (await reserve(raw, relay)).status == Status.OK
        async with await hop_stream(client, relay) as stream:
            peer = PeerId(id=raw.get_id().to_bytes())
            await write_message(stream, HopMessage(type=HopMessage.CONNECT, peer=peer))
            assert (await read_message(stream, HopMessage)).status == Status.OK
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
                await stream.receive_some()
    assert seen == [peer_id_of(relay)]


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\xff\xff\xff\xff\xff",
        b"\xff\x7f" + bytes(20000),
        b"\x03abc",
        b"\x04\x08\x01\x12\x00",
        b"\x06\x08\x01\x12\x02\x0a\x00",
        b"\x02\x08\x63",
        b"",
    ],
)
async def test_garbage_ends_its_stream_and_nothing_else(relay, hidden, client, data: bytes) -> None:
    stream = await hop_stream(client, relay)
    await stream.send_all(data)
    await stream.send_eof()
    with trio.fail_after(5):
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
    assert relay.relay.circuits == 0
    assert list(relay.relay._places) == [peer_id_of(hidden)] * (data != b"\x00") + (
        [peer_id_of(hidden), peer_id_of(client)] if data == b"\x00" else []
    )
    await dial(client, host_addresses(hidden)[0])
    await ping(client, peer_id_of(hidden))


async def test_a_message_without_end_is_not_waited_for(relay, client) -> None:
    stream = await hop_stream(client, relay)
    await stream.send_all(b"\xff\xff\xff\x7f" + bytes(1000))
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
        await stream.receive_some()


async def test_a_relay_of_a_relay_is_refused(relay, client) -> None:
    async with open_hidden(relay, relay=ROOMY) as hidden:
        await dial(client, host_addresses(hidden)[0])
        for kind in (HopMessage.RESERVE, HopMessage.CONNECT):
            async with await open_stream(client, peer_id_of(hidden), [HOP]) as stream:
                await write_message(stream, HopMessage(type=kind, peer=PeerId(id=relay.get_id().to_bytes())))
                assert (await read_message(stream, HopMessage)).status == Status.PERMISSION_DENIED


async def test_a_circuit_comes_only_from_where_a_place_was_taken(hidden, client, relay) -> None:
    await dial(client, host_addresses(hidden)[0])
    async with await open_stream(client, peer_id_of(hidden), [STOP]) as stream:
        await write_message(stream, StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=client.get_id().to_bytes())))
        assert (await read_message(stream, StopMessage)).status == Status.PERMISSION_DENIED


# Keeping a reservation


async def test_a_place_is_taken_again_when_the_relay_comes_back(client, eventually) -> None:
    identity = new_identity()
    async with open_host(identity, [LOOPBACK]) as relay:
        address = host_addresses(relay)[0]
    async with open_host(new_identity(), reserve_at=[address]) as hidden:
        for _ in range(2):
            async with open_host(identity, [address.partition("/p2p/")[0]], relay=ROOMY):
                await eventually(lambda: hidden.relayed_addresses)
                await dial(client, hidden.relayed_addresses[0])
                await ping(client, peer_id_of(hidden))
            await eventually(lambda: not hidden.relayed_addresses)
            await eventually(lambda: not client.get_network().get_connections())


async def test_a_relays_connection_is_not_idle(relay, hidden) -> None:
    assert hidden.swarm.is_protected(relay.get_id())


@pytest.mark.parametrize("address", ["nonsense", f"/ip4/127.0.0.1/tcp/1/p2p/{SOMEBODY}/p2p-circuit/p2p/{SOMEBODY}"])
async def test_what_is_no_relay_is_refused(address: str) -> None:
    with pytest.raises(AddressError):
        async with open_host(new_identity(), reserve_at=[address]):
            pytest.fail("a place nowhere")


async def test_an_error_in_the_block_comes_out_as_it_is(relay) -> None:
    options = {"relay": ROOMY, "reserve_at": [host_addresses(relay)[0]]}
    with pytest.raises(KeyError, match="mine"):
        async with open_host(new_identity(), [LOOPBACK], **options):
            raise KeyError("mine")


def test_a_relayed_address() -> None:
    relay_id, peer_id = new_identity().peer_id, new_identity().peer_id
    text = f"/dns4/relay.example/tcp/4001/p2p/{relay_id}/p2p-circuit/p2p/{peer_id}"
    address = parse_peer_address(text)
    assert (address.text, address.relayed, address.peer_id.to_base58()) == (text, True, peer_id)
    assert address.relay.text == f"/dns4/relay.example/tcp/4001/p2p/{relay_id}"
    assert not address.relay.relayed
    assert parse_peer_address(address.relay.text) == address.relay


@pytest.mark.parametrize(
    "text",
    [
        f"/p2p/{SOMEBODY}/p2p-circuit/p2p/{SOMEBODY}",
        f"/ip4/127.0.0.1/tcp/1/p2p/{SOMEBODY}/p2p-circuit",
        f"/ip4/127.0.0.1/tcp/1/p2p-circuit/p2p/{SOMEBODY}",
        f"/ip4/127.0.0.1/tcp/1/p2p/{SOMEBODY}/p2p/{SOMEBODY}",
        f"/ip4/127.0.0.1/tcp/1/p2p/{SOMEBODY}/p2p-circuit/p2p/{SOMEBODY}/p2p-circuit/p2p/{SOMEBODY}",
    ],
)
def test_other_forms_are_not_dialled(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_peer_address(text)
    assert caught.value.code == "unsupported_address"
