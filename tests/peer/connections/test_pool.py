"""Connections to peers over real sockets: shared, reused, closed when idle, dialled again, and never leaked."""

from __future__ import annotations

import contextlib
import os
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from dms_host import HostLimits, attach_protocols, dial, host_addresses, open_host, open_stream
from dms_host.errors import DialError
from dms_host.keys.identity import new_identity
from dms_peer.connections import ConnectionLimits, ConnectionPool, open_connections
from dms_protocols.errors import ConnectionLostError
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import serve_stream

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
ECHO = "/echo/1.0.0"
OTHER = "/other/1.0.0"
SOMEBODY = new_identity(b"somebody".ljust(32)).peer_id
QUICK = ConnectionLimits(stream_idle=0.05, connection_idle=0.05, backoff_first=30.0)


class EchoRequest(msgspec.Struct, frozen=True, tag_field="op", tag="echo"):
    text: str


class EchoAnswer(msgspec.Struct, frozen=True):
    text: str
    caller: str


class Provider:
    """A host that echoes, and the number of streams that were opened to it."""

    def __init__(self, host) -> None:
        self.host = host
        self.streams = 0

    @property
    def peer_id(self) -> str:
        return self.host.get_id().to_base58()

    @property
    def addrs(self) -> tuple[str, ...]:
        return host_addresses(self.host)

    async def answer(self, stream, peer_id: str) -> None:
        self.streams += 1
        operations = Operations()
        operations.quick(EchoRequest, lambda request, caller: EchoAnswer(request.text, caller.peer_id))
        await serve_stream(stream, operations, Caller(peer_id))


@asynccontextmanager
async def open_provider(identity=None):
    async with open_host(identity or new_identity(), [LOOPBACK]) as host:
        provider = Provider(host)
        handlers = {ECHO: provider.answer, OTHER: provider.answer}
        async with attach_protocols(host, handlers, stop_timeout=0.1):
            yield provider


@pytest.fixture
async def provider():
    async with open_provider() as provider:
        yield provider


async def echo(client, text: str) -> EchoAnswer:
    return await client.call(EchoRequest(text), EchoAnswer, timeout=5)


async def refusal(connections, peer_id: str, addrs=()) -> DialError:
    with pytest.raises(DialError) as caught:
        async with connections.client(peer_id, ECHO, addrs):
            pytest.fail("connected to nobody")
    return caught.value


def addresses_of(ports, peer_id: str = SOMEBODY) -> list[str]:
    return [f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id}" for port in ports]


@asynccontextmanager
async def silent_listeners(count: int):
    """The ports of TCP listeners that accept connections and send nothing, and the accepted connections."""
    taken: list[trio.SocketStream] = []

    async def keep(stream) -> None:
        taken.append(stream)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        ports = []
        for _ in range(count):
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, keep, [listener])
            ports.append(listener.socket.getsockname()[1])
        yield ports, taken
        nursery.cancel_scope.cancel()


# Sharing


async def test_all_users_share_one_stream_on_one_connection(provider, client) -> None:
    async with open_connections(client) as connections:
        texts = []

        async def ask(number: int) -> None:
            async with connections.client(provider.peer_id, ECHO, provider.addrs) as shared:
                answer = await echo(shared, str(number))
                assert answer.caller == connections.peer_id
                texts.append(answer.text)

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(ask, number)
        assert sorted(texts, key=int) == [str(number) for number in range(30)]
        assert provider.streams == 1
        # The addresses are not used either: the stream exists.
        async with connections.client(provider.peer_id, ECHO) as shared:
            await echo(shared, "again")
        async with connections.client(provider.peer_id, OTHER) as shared:
            await echo(shared, "another protocol")
        assert provider.streams == 2
        assert len(client.get_network().get_connections()) == 1
        assert connections.statistics.dials == 1


async def test_addresses_come_from_the_book_when_nobody_gives_any(provider, client) -> None:
    book = {provider.peer_id: provider.addrs}
    async with open_connections(client, addresses=lambda peer_id: book.get(peer_id, ())) as connections:
        async with connections.client(provider.peer_id, ECHO) as shared:
            assert (await echo(shared, "found")).text == "found"
        assert (await refusal(connections, SOMEBODY)).code == "no_address"


async def test_a_connection_that_the_peer_made_is_used(provider, server) -> None:
    await dial(provider.host, host_addresses(server)[0])
    async with open_connections(server) as connections:
        async with connections.client(provider.peer_id, ECHO) as shared:
            await echo(shared, "over yours")
        assert connections.statistics.dials == 0


async def test_what_the_first_user_opened_survives_that_user(provider, client) -> None:
    async with open_connections(client) as connections, trio.open_nursery() as nursery:
        opened = trio.Event()
        first = trio.CancelScope()

        async def stay() -> None:
            with first:
                async with connections.client(provider.peer_id, ECHO, provider.addrs):
                    opened.set()
                    await trio.sleep_forever()

        nursery.start_soon(stay)
        await opened.wait()
        async with connections.client(provider.peer_id, ECHO) as shared:
            first.cancel()
            await echo(shared, "still here")
        assert provider.streams == 1


async def test_who_waits_is_not_harmed_when_who_came_first_leaves(provider, client) -> None:
    async with open_connections(client) as connections, trio.open_nursery() as nursery:
        first = trio.CancelScope()
        answers = []

        async def leave() -> None:
            with first:
                async with connections.client(provider.peer_id, ECHO, provider.addrs):
                    await trio.sleep_forever()

        async def wait() -> None:
            async with connections.client(provider.peer_id, ECHO) as shared:
                answers.append(await echo(shared, "opened"))

        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
    assert [answer.text for answer in answers] == ["opened"]


async def test_a_stream_that_broke_is_opened_again(provider, client, eventually) -> None:
    async with open_connections(client) as connections:
        async with connections.client(provider.peer_id, ECHO, provider.addrs) as shared:
            await echo(shared, "before")
            (connection,) = client.get_network().get_connections()
            await connection.muxed_conn.secured_conn.close()
            with pytest.raises(ConnectionLostError):
                await echo(shared, "lost")
            # It does not stay until it is idle.
            await eventually(lambda: connections.statistics.clients == 0)
        # The address was learned when it was dialled.
        async with connections.client(provider.peer_id, ECHO) as shared:
            assert (await echo(shared, "after")).text == "after"
        assert connections.statistics.dials == 2


# Idle


async def test_an_idle_stream_and_then_an_idle_connection_are_closed(provider, client, eventually) -> None:
    async with open_connections(client, limits=QUICK) as connections:
        async with connections.client(provider.peer_id, ECHO, provider.addrs) as shared:
            await echo(shared, "once")
            # In use it is not idle, even if nothing is sent: several idle periods pass here.
            await trio.sleep(0.2)
            await echo(shared, "twice")
        await eventually(lambda: connections.statistics.clients == 0)
        await eventually(lambda: not client.get_network().get_connections())
        async with connections.client(provider.peer_id, ECHO) as shared:
            await echo(shared, "dialled again")
        assert connections.statistics.dials == 2


async def test_a_connection_that_others_use_stays(provider, client, eventually) -> None:
    async with open_connections(client, limits=QUICK) as connections:
        async with connections.client(provider.peer_id, ECHO, provider.addrs):
            stream = await open_stream(client, provider.peer_id, [OTHER])
        await eventually(lambda: connections.statistics.clients == 0)
        await trio.sleep(0.2)
        assert len(client.get_network().get_connections()) == 1
        await stream.aclose()
        await eventually(lambda: not client.get_network().get_connections())


async def test_a_protected_peer_keeps_its_connection(provider, client, eventually) -> None:
    async with open_connections(client, limits=QUICK) as connections:
        client.swarm.protect(client_id := provider.host.get_id(), "bootstrap")
        await connections.connect(provider.peer_id, provider.addrs)
        await eventually(lambda: not client.get_network().get_connections()[0].muxed_conn.streams)
        await trio.sleep(0.2)
        assert len(client.get_network().get_connections()) == 1
        client.swarm.unprotect(client_id, "bootstrap")
        await eventually(lambda: not client.get_network().get_connections())


async def test_a_connection_that_somebody_else_dialled_is_not_closed(provider, client, eventually) -> None:
    await dial(client, provider.addrs[0])
    async with open_connections(client, limits=QUICK) as connections:
        async with connections.client(provider.peer_id, ECHO) as shared:
            await echo(shared, "on a connection that is there")
        await eventually(lambda: connections.statistics.clients == 0)
        await trio.sleep(0.2)
    assert len(client.get_network().get_connections()) == 1


async def test_a_connection_that_the_peer_made_while_we_waited_is_not_closed(server, client, eventually) -> None:
    peer_id = client.get_id().to_base58()
    limits = ConnectionLimits(dials=1)
    async with silent_listeners(1) as ((port,), taken), open_connections(server, limits=limits) as connections:
        async with trio.open_nursery() as nursery:
            turn = trio.CancelScope()

            async def take_the_turn() -> None:
                with turn:
                    await connections.connect(SOMEBODY, addresses_of([port]))

            nursery.start_soon(take_the_turn)
            await eventually(lambda: taken)
            nursery.start_soon(connections.connect, peer_id, addresses_of([1], peer_id))
            await eventually(lambda: connections.statistics.dials_waiting == 1)
            await dial(client, host_addresses(server)[0])
            await eventually(server.get_connected_peers)
            turn.cancel()
        # It is not among those that are closed when they are idle.
        assert connections.statistics.dialled_connections == 0
        assert server.get_connected_peers() == [client.get_id()]


async def test_at_the_end_the_connections_are_closed(provider, client, eventually) -> None:
    async with (
        open_connections(client) as connections,
        connections.client(provider.peer_id, ECHO, provider.addrs) as shared,
    ):
        await echo(shared, "hello")
    await eventually(lambda: not client.get_network().get_connections())
    assert (await refusal(connections, provider.peer_id, provider.addrs)).code == "closed"


# Dialling


async def test_dials_at_once_are_bounded(client, eventually) -> None:
    limits = ConnectionLimits(dials=4, dial_deadline=5)
    peers = [new_identity().peer_id for _ in range(10)]
    async with silent_listeners(1) as ((port,), taken), open_connections(client, limits=limits) as connections:
        async with trio.open_nursery() as nursery:

            async def ask(peer_id: str) -> None:
                async with connections.client(peer_id, ECHO, addresses_of([port], peer_id)):
                    pytest.fail("connected to nobody")

            for peer_id in peers:
                nursery.start_soon(ask, peer_id)
            await eventually(lambda: connections.statistics.dials_waiting == 6 and len(taken) == 4)
            assert connections.statistics.dials_running == 4
            assert len(taken) == 4
            nursery.cancel_scope.cancel()
        # Cancelled dials free their slots.
        await eventually(lambda: not connections.statistics.dials_running and not connections.statistics.clients)


async def test_one_dial_serves_all_protocols_of_a_peer(client, eventually) -> None:
    async with (
        silent_listeners(1) as ((port,), taken),
        open_connections(client) as connections,
        trio.open_nursery() as nursery,
    ):

        async def ask(protocol: str) -> None:
            async with connections.client(SOMEBODY, protocol, addresses_of([port])):
                pytest.fail("connected to nobody")

        for protocol in (ECHO, OTHER, "/third/1.0.0"):
            nursery.start_soon(ask, protocol)
        await eventually(lambda: len(taken) == 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(taken) == 1
        assert connections.statistics.dials_running == 1
        nursery.cancel_scope.cancel()


async def test_an_address_that_says_nothing_holds_up_no_other(provider, client) -> None:
    limits = ConnectionLimits(head_start=0.01, dial_deadline=60, attempt_deadline=60)
    async with silent_listeners(3) as (ports, taken), open_connections(client, limits=limits) as connections:
        addrs = [*addresses_of(ports, provider.peer_id), *provider.addrs]
        with trio.fail_after(10):
            async with connections.client(provider.peer_id, ECHO, addrs) as shared:
                await echo(shared, "found")
        assert len(taken) == 3
        assert len(client.get_network().get_connections()) == 1


async def test_addresses_of_one_dial_are_bounded(client, eventually) -> None:
    limits = ConnectionLimits(addresses=3, head_start=0.01, attempt_deadline=0.3)
    async with silent_listeners(6) as (ports, taken), open_connections(client, limits=limits) as connections:
        assert (await refusal(connections, SOMEBODY, addresses_of(ports))).code == "timeout"
        assert len(taken) == 3


async def test_addresses_of_others_and_nonsense_are_passed_over(provider, client) -> None:
    addrs = ["nonsense", *addresses_of([1]), provider.addrs[0].partition("/p2p/")[0]]
    async with open_connections(client) as connections:
        # The last one names no peer, and counts as an address of the queried peer.
        async with connections.client(provider.peer_id, ECHO, addrs) as shared:
            await echo(shared, "found")
        assert (await refusal(connections, SOMEBODY, ["nonsense", *provider.addrs])).code == "no_address"
        assert (await refusal(connections, "nonsense", provider.addrs)).code == "no_address"
        assert (await refusal(connections, connections.peer_id, provider.addrs)).code == "self_dial"


# Failures


async def test_a_peer_that_was_not_reached_is_left_alone_for_a_while(client) -> None:
    async with open_connections(client, limits=QUICK) as connections:
        assert (await refusal(connections, SOMEBODY, addresses_of([1]))).code == "refused"
        for _ in range(3):
            error = await refusal(connections, SOMEBODY, addresses_of([1]))
            assert error.code == "backing_off"
            assert 0 < error.retry_after <= 30
        assert connections.statistics.dials == 1
        assert connections.statistics.backing_off == 1


async def test_a_peer_that_moved_is_found_at_its_new_address(client, eventually) -> None:
    identity = new_identity()
    async with open_connections(client, limits=QUICK) as connections:
        async with open_provider(identity) as provider:
            old = provider.addrs
            async with connections.client(identity.peer_id, ECHO, old) as shared:
                await echo(shared, "here")
        await eventually(lambda: not client.get_network().get_connections())
        assert (await refusal(connections, identity.peer_id, old)).code == "refused"
        async with open_provider(identity) as provider:
            assert provider.addrs != old
            # Known addresses are not dialled during the back-off, new ones are.
            assert (await refusal(connections, identity.peer_id, old)).code == "backing_off"
            async with connections.client(identity.peer_id, ECHO, [*old, *provider.addrs]) as shared:
                assert (await echo(shared, "moved")).text == "moved"
            assert connections.statistics.backing_off == 0


async def test_what_is_our_own_fault_is_not_held_against_the_peer(provider, server, eventually) -> None:
    limits = HostLimits(max_connections=1, max_inbound_connections=1)
    async with open_host(new_identity(), limits=limits) as host, open_connections(host) as connections:
        await dial(host, host_addresses(server)[0])
        assert (await refusal(connections, provider.peer_id, provider.addrs)).code == "busy"
        for connection in host.get_network().get_connections():
            await connection.close()
        await connections.connect(provider.peer_id, provider.addrs)


async def test_a_connection_that_ends_before_its_first_stream_is_made_again(provider, client, monkeypatch) -> None:
    connected = ConnectionPool.connect
    async with open_connections(client) as connections:

        async def connect_and_lose(peer_id: str, addrs) -> None:
            await connected(connections, peer_id, addrs)
            if connections.statistics.dials == 1:
                for connection in client.get_network().get_connections():
                    await connection.close()

        monkeypatch.setattr(connections, "connect", connect_and_lose)
        async with connections.client(provider.peer_id, ECHO, provider.addrs) as shared:
            assert (await echo(shared, "second try")).text == "second try"


async def test_a_connection_of_a_peer_ends_its_being_left_alone(server, client) -> None:
    async with open_connections(server, limits=QUICK) as connections:
        peer_id = client.get_id().to_base58()
        assert (await refusal(connections, peer_id, addresses_of([1], peer_id))).code == "refused"
        await dial(client, host_addresses(server)[0])
        await connections.connect(peer_id)


async def test_whoever_knows_a_new_address_is_not_failed_by_who_did_not(provider, client, eventually) -> None:
    async with silent_listeners(1) as ((port,), taken):
        limits = ConnectionLimits(attempt_deadline=0.3)
        async with open_connections(client, limits=limits) as connections, trio.open_nursery() as nursery:

            async def ask_there() -> None:
                assert (await refusal(connections, provider.peer_id, addresses_of([port], provider.peer_id))).code

            nursery.start_soon(ask_there)
            await eventually(lambda: taken)
            async with connections.client(provider.peer_id, ECHO, provider.addrs) as shared:
                assert (await echo(shared, "found")).text == "found"


async def test_a_protocol_that_the_peer_does_not_speak_says_nothing_of_the_peer(provider, client) -> None:
    async with open_connections(client) as connections:
        with pytest.raises(DialError) as caught:
            async with connections.client(provider.peer_id, "/nobody/1.0.0", provider.addrs):
                pytest.fail("a protocol that nobody speaks")
        assert caught.value.code == "protocol_not_supported"
        async with connections.client(provider.peer_id, ECHO) as shared:
            await echo(shared, "still reached")


async def test_clients_are_bounded_and_unused_ones_give_way(provider, client, eventually) -> None:
    async with open_connections(client, limits=ConnectionLimits(clients=1)) as connections:
        async with connections.client(provider.peer_id, ECHO, provider.addrs):
            with pytest.raises(DialError) as caught:
                async with connections.client(provider.peer_id, OTHER):
                    pytest.fail("more than the bound")
            assert caught.value.code == "busy"
        async with connections.client(provider.peer_id, OTHER) as shared:
            await echo(shared, "in its place")
        await eventually(lambda: connections.statistics.clients == 1)


async def test_a_forgotten_peer_loses_its_connection(provider, client, eventually) -> None:
    async with open_connections(client) as connections:
        async with connections.client(provider.peer_id, ECHO, provider.addrs) as shared:
            connections.forget(provider.peer_id)
            with pytest.raises(ConnectionLostError):
                await echo(shared, "too late")
        await eventually(lambda: not client.get_network().get_connections())


async def test_who_comes_after_a_forgotten_client_gets_another(provider, server) -> None:
    await dial(provider.host, host_addresses(server)[0])
    async with open_connections(server) as connections:
        async with connections.client(provider.peer_id, ECHO) as shared:
            connections.forget(provider.peer_id)
            async with connections.client(provider.peer_id, ECHO) as another:
                assert another is not shared
                await echo(another, "of my own")
            with pytest.raises(ConnectionLostError):
                await echo(shared, "too late")
        # The peer made the connection, so it stays.
        assert len(server.get_network().get_connections()) == 1
        assert provider.streams == 2


async def test_an_error_in_the_block_comes_out_as_it_is(client) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_connections(client):
            raise KeyError("mine")


# Leaks


def open_sockets() -> list[str]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(name for name in found if name.startswith("socket:"))


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_cycles_that_are_cancelled_anywhere_leave_nothing_behind(provider, client, eventually) -> None:
    async def settle() -> None:
        await eventually(lambda: not client.get_network().get_connections())
        await eventually(lambda: provider.host.swarm.inbound_connections == 0)

    async def cycle(steps: int) -> None:
        async with open_connections(client) as connections, trio.open_nursery() as nursery:

            async def ask(text: str) -> None:
                async with connections.client(provider.peer_id, ECHO, provider.addrs) as shared:
                    await echo(shared, text)

            nursery.start_soon(ask, "first")
            nursery.start_soon(ask, "second")
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    await trio.testing.wait_all_tasks_blocked(0.05)
    sockets, before = open_sockets(), tasks()
    for number in range(200):
        # A dial takes some hundred turns of the scheduler, so this cancels in all of its parts.
        await cycle(number * 2)
    await settle()
    await eventually(lambda: tasks() <= before)
    await eventually(lambda: open_sockets() == sockets)
