"""Peers on the local network, by libp2p's multicast DNS.

A received record is only an address to dial: the handshake proves which peer listens there. The DNS itself is
implemented by zeroconf, in two threads that end with the block. Its records pass through a mailbox of bounded size.

Source: https://github.com/libp2p/specs/blob/master/discovery/mdns.md (service `_p2p._udp.local`, TXT strings
`dnsaddr=MULTIADDR`).
"""

from __future__ import annotations

import logging
import random
import socket
import string
import traceback
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from dms_host.addresses import PeerAddress, is_loopback, parse_peer_address
from dms_host.errors import AddressError
from dms_protocols.messages.bid import EnsembleRequest
from dms_resources.bounded_dict import BoundedDict
from dms_resources.tasks import open_background

from ..requesting.network import Candidate

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

__all__ = ["MDNSPeers", "open_mdns"]

_log = logging.getLogger(__name__)

_LOOPBACK: Final = ("127.0.0.1",)
_SERVICE: Final = "_p2p._udp.local."
_TXT: Final = 16
_PREFIX: Final = b"dnsaddr="
_LONGEST_STRING: Final = 255
_MOST_ADDRESSES: Final = 16
_MOST_PEERS: Final = 256
_MOST_HEARD: Final = 256
# Seconds. The standard recommends this time for records other than addresses (RFC 6762, section 10).
_LONGEST_TTL: Final = 4500.0
# The seconds after which all present peers have answered: the first query, if any peer answered, otherwise the second
# one, which follows after a second.
_SETTLING: Final = 1.0
_SETTLING_ALONE: Final = 2.0
# Many peers announce the port 0, on which nothing listens, because the record needs a port.
_SOME_PORT: Final = 4001


@dataclass(frozen=True, slots=True)
class _Heard:
    """One TXT record: its name, its content, and its time to live (seconds; 0 is a goodbye)."""

    name: str
    text: bytes
    ttl: float


@dataclass(frozen=True, slots=True)
class _Entry:
    text: bytes
    peer_id: str
    addrs: tuple[str, ...]
    expires: float


class MDNSPeers:
    """A CandidateSource of the peers on the local network. `open_mdns` makes it."""

    name = "mdns"

    def __init__(
        self, own_id: str, opened_at: float, on_own: Callable[[Sequence[str]], None] = lambda addrs: None
    ) -> None:
        """`on_own` is called with the addresses of every record that has the id `own_id`."""
        self._own_id = own_id
        self._on_own = on_own
        self._opened_at = opened_at
        self._deaf = False
        self._entries: BoundedDict[str, _Entry] = BoundedDict(_MOST_PEERS)
        self._changed = trio.Event()

    def peers(self) -> dict[str, tuple[str, ...]]:
        """The addresses of each peer that was heard and has not left, the newest first."""
        now, found = trio.current_time(), dict[str, tuple[str, ...]]()
        for entry in reversed(self._entries.values()):
            if entry.expires > now:
                # Another host announcing the same peer id does not replace the peer's own record.
                addrs = dict.fromkeys((*found.get(entry.peer_id, ()), *entry.addrs))
                found[entry.peer_id] = tuple(addrs)[:_MOST_ADDRESSES]
        return found

    async def wait_changed(self) -> None:
        """Return when a new peer was heard. May be cancelled."""
        await self._changed.wait()

    @asynccontextmanager
    async def candidates(self, request: EnsembleRequest) -> AsyncIterator[AsyncIterator[Candidate]]:
        """Yield the peers that were heard. Just after the start, wait for the first answers."""
        async with aclosing(self._candidates(request)) as found:
            yield found

    async def _candidates(self, request: EnsembleRequest) -> AsyncGenerator[Candidate, None]:
        told = set(request.peer_exclusion)
        await trio.lowlevel.checkpoint()
        while True:
            changed = self._changed
            for peer_id, addrs in self.peers().items():
                if peer_id not in told:
                    told.add(peer_id)
                    yield Candidate(peer_id, addrs, self.name)
            if self._deaf:
                return
            with trio.move_on_at(self._opened_at + (_SETTLING if self._entries else _SETTLING_ALONE)) as waiting:
                await changed.wait()
            if waiting.cancelled_caught:
                return

    def asked(self) -> None:
        """Note that the first query is sent now."""
        self._opened_at = trio.current_time()
        self._deaf = False

    def nobody_answers(self) -> None:
        """Note that this machine has no such network, so that no answer is expected."""
        self._deaf = True
        self._wake()

    def heard(self, record: _Heard) -> None:
        """Handle one record."""
        before = self._entries.pop(record.name, None)
        if record.ttl <= 0:
            return
        expires = trio.current_time() + min(record.ttl, _LONGEST_TTL)
        if before is not None and before.text == record.text:
            # A repetition, as every few minutes.
            self._entries[record.name] = replace(before, expires=expires)
            return
        found = tuple(_addresses(record.text))
        peers = {address.peer_id.to_base58() for address in found}
        addrs = tuple(address.text for address in found)
        if peers == {self._own_id}:
            self._on_own(addrs)
        if len(peers) != 1 or self._own_id in peers:
            return
        self._entries[record.name] = _Entry(record.text, peers.pop(), addrs, expires)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _addresses(text: bytes) -> Iterator[PeerAddress]:
    """The addresses in a TXT record (RFC 6763, section 6.1) that could be dialled."""
    found = 0
    while text and found < _MOST_ADDRESSES:
        said, text = text[1 : 1 + text[0]], text[1 + text[0] :]
        if not said.startswith(_PREFIX):
            continue
        # Counted even if it is invalid, because an invalid record must not cost more than a valid one.
        found += 1
        try:
            yield parse_peer_address(said[len(_PREFIX) :].decode(errors="replace"))
        except AddressError:
            # Peers of other transports are ignored.
            continue


@asynccontextmanager
async def open_mdns(
    peer_id: str,
    addrs: Sequence[str] = (),
    *,
    interfaces: Sequence[str] | None = None,
    changes: Callable[[], Awaitable[Sequence[str]]] | None = None,
    on_own: Callable[[Sequence[str]], None] = lambda addrs: None,
) -> AsyncIterator[MDNSPeers]:
    """Listen for peers on the local network while the block runs, and announce `addrs` to them, if there are any.

    Listening begins in the background. `interfaces` are the IP addresses of the interfaces to use, by default all; only
    loopback if `addrs` are all loopback. `changes` returns the new addresses when they have changed; the interfaces are
    then opened again. `on_own` is called with the addresses of every record that has the own id. A network without
    multicast costs one line in the log. At the end a goodbye is sent, which takes a second.
    """
    peers = MDNSPeers(peer_id, trio.current_time(), on_own)
    async with open_background(partial(_run, peers, tuple(addrs), interfaces, changes or _no_changes)):
        yield peers


async def _no_changes() -> Sequence[str]:
    await trio.sleep_forever()
    raise AssertionError("unreachable")


async def _run(
    peers: MDNSPeers,
    addrs: Sequence[str],
    interfaces: Sequence[str] | None,
    changes: Callable[[], Awaitable[Sequence[str]]],
) -> None:
    mailbox = _Mailbox(peers, trio.lowlevel.current_trio_token())
    while True:
        # A loopback address is useless to the network: other machines would connect to themselves.
        local = bool(addrs) and all(map(is_loopback, addrs))
        addrs = await _until_changed(peers, mailbox, addrs, interfaces or (_LOOPBACK if local else None), changes)


async def _until_changed(
    peers: MDNSPeers,
    mailbox: _Mailbox,
    addrs: Sequence[str],
    interfaces: Sequence[str] | None,
    changes: Callable[[], Awaitable[Sequence[str]]],
) -> Sequence[str]:
    """Listen and announce until the addresses change; return the new ones."""
    try:
        # No thread may outlive the block, so the start, which takes milliseconds, is not cancelled.
        zeroconf = await trio.to_thread.run_sync(_start, mailbox, interfaces)
    except Exception as error:
        # Each system raises other errors if there is no network; all of them mean the same.
        _log.warning("no peers are looked for on the local network (mDNS): %s", _one_line(error))
        peers.nobody_answers()
        return await changes()
    try:
        peers.asked()
        if addrs:
            await trio.to_thread.run_sync(_announce, zeroconf, _service_info(addrs))
        return await changes()
    finally:
        with trio.CancelScope(shield=True):
            # Bounded by zeroconf itself.
            await trio.to_thread.run_sync(_close, zeroconf)


class _Mailbox:
    """Passes records from zeroconf's thread to ours. It drops records beyond its size, which zeroconf repeats later."""

    def __init__(self, peers: MDNSPeers, token: trio.lowlevel.TrioToken) -> None:
        self._peers = peers
        self._token = token
        self._waiting: deque[_Heard] = deque(maxlen=_MOST_HEARD)

    def put(self, heard: _Heard) -> None:
        """Called in zeroconf's thread."""
        self._waiting.append(heard)
        # Any number of calls leads to only one delivery.
        self._token.run_sync_soon(self._deliver, idempotent=True)

    def _deliver(self) -> None:
        while self._waiting:
            self._peers.heard(self._waiting.popleft())


def _start(mailbox: _Mailbox, interfaces: Sequence[str] | None) -> Zeroconf:
    # Imported here, because it takes a tenth of a second, which only listening commands should pay.
    from zeroconf import RecordUpdate, RecordUpdateListener, ServiceListener

    class Records(RecordUpdateListener):
        """Receives every record. zeroconf's own resolver waits for SRV and address records that not all peers send."""

        def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
            for record in (update.new for update in records):
                if record.type == _TXT and record.name.lower().endswith(f".{_SERVICE}"):
                    text: bytes = getattr(record, "text", b"")
                    mailbox.put(_Heard(record.name, text, 0.0 if record.is_expired(now) else record.ttl))

        def async_update_records_complete(self) -> None:
            """zeroconf calls this after each batch. There is nothing to do."""

    class Asking(ServiceListener):
        """Makes zeroconf query the service, at the intervals of the standard. `Records` receives the answers."""

        def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            pass

        def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            pass

        def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            pass

    zeroconf = _open_zeroconf(interfaces)
    try:
        if not zeroconf.engine.senders:
            # The library would start without an error, and never receive anything.
            raise OSError("no network interface can be used")
        zeroconf.add_listener(Records(), None)
        zeroconf.add_service_listener(_SERVICE, Asking())
    except BaseException:
        zeroconf.close()
        raise
    return zeroconf


def _open_zeroconf(interfaces: Sequence[str] | None) -> Zeroconf:
    """Open the sockets: of the interfaces named, or of all, for IPv6 too if the machine has it."""
    from zeroconf import InterfaceChoice, IPVersion, Zeroconf

    def open_for(version: IPVersion | None) -> Zeroconf:
        try:
            return Zeroconf(
                interfaces=InterfaceChoice.All if interfaces is None else list(interfaces),
                ip_version=version,
                # zeroconf runs in a thread of its own.
                use_asyncio=False,
            )
        except Exception as error:
            _close_sockets(error)
            raise

    if interfaces is not None:
        return open_for(None)
    try:
        return open_for(IPVersion.All)
    except Exception as error:
        _log.debug("mDNS does without IPv6: %s", _one_line(error))
        return open_for(IPVersion.V4Only)


def _close_sockets(error: Exception) -> None:
    """Close what zeroconf had opened when it failed: release 0.150 leaves that to the garbage collector."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            for one in value if isinstance(value, list) else (value,):
                if isinstance(one, socket.socket):
                    one.close()


def _announce(zeroconf: Zeroconf, info: ServiceInfo) -> None:
    try:
        zeroconf.register_service(info)
    except Exception as error:
        _log.warning("this peer is not announced on the local network (mDNS): %s", _one_line(error))


def _close(zeroconf: Zeroconf) -> None:
    try:
        zeroconf.close()
    except Exception as error:
        # The goodbye fails if the network is gone.
        _log.debug("closing mDNS failed: %s", _one_line(error))


def _service_info(addrs: Sequence[str]) -> ServiceInfo:
    from zeroconf import ServiceInfo

    # Random, as the standard requires, so that the name does not identify a peer across networks.
    name = "".join(random.SystemRandom().choices(string.ascii_lowercase + string.digits, k=40))
    strings = [string for string in map(_string, addrs) if len(string) <= 1 + _LONGEST_STRING][:_MOST_ADDRESSES]
    parsed = [parse_peer_address(address) for address in addrs]
    options: dict[str, Any] = {"parsed_addresses": [one.host for one in parsed if one.kind in ("ip4", "ip6")]}
    port = next((one.port for one in parsed), _SOME_PORT)
    # The strings one by one, because a mapping could have the key `dnsaddr` only once.
    return ServiceInfo(
        _SERVICE, f"{name}.{_SERVICE}", port=port, properties=b"".join(strings), server=f"{name}.local.", **options
    )


def _string(address: str) -> bytes:
    content = _PREFIX + address.encode()
    return bytes([min(len(content), _LONGEST_STRING)]) + content


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
