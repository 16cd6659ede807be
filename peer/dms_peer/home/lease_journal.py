"""What a home holds at other peers: a small file, so that the requester still knows it after a crash or on another day.

Rules:

1. The file (`leases.json`, mode 0600) is replaced in one step under a lock of its own: several commands of one home
   may write at once.
2. A provider is recorded before a commitment is requested from it. A lease whose answer was lost is then found by the
   wire's `list` at that provider.
3. The journal may be out of date: the provider's answer replaces an entry.
4. An entry is removed when its lease was released or has ended, or a day after its deadline. A provider that was not
   used is removed after 30 days.
5. A file that cannot be read is renamed, never overwritten.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from dms_resources.ledger.leases import Lease
from dms_resources.private_files import write_private
from dms_resources.units import decode_value, encode_value

from .state_files import read_state, set_aside

__all__ = ["HeldLease", "JournalProvider", "LeaseJournal"]

_VERSION: Final = 1
_MOST_READ: Final = 64 * 1024 * 1024
_MOST_LEASES: Final = 10_000
_MOST_PROVIDERS: Final = 1024
# Seconds that a lease is kept after its deadline, and a provider after its last use.
_KEEP_LEASE: Final = 86400.0
_KEEP_PROVIDER: Final = 30 * 86400.0


class HeldLease(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A lease at a provider, as it was at `seen` (Unix seconds).

    With `kept` the running peer of the home renews it, because the command that took it has ended.
    """

    peer_id: str
    lease: Lease
    seen: float
    kept: bool = False


class JournalProvider(Struct, frozen=True, kw_only=True):
    """A peer at which this home committed something, its addresses, and when it was last used (Unix seconds)."""

    peer_id: str
    addrs: tuple[str, ...]
    used: float


class _Contents(Struct, frozen=True):
    version: int = _VERSION
    leases: tuple[HeldLease, ...] = ()
    providers: tuple[JournalProvider, ...] = ()


_decoder: Final = msgspec.json.Decoder(_Contents, dec_hook=decode_value)


class LeaseJournal:
    """The journal of the home at `home`. Every method blocks on the disk and raises OSError."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = home / "leases.json"
        self._clock = clock

    def leases(self) -> list[HeldLease]:
        """The leases that are held, as far as known, the newest first."""
        return sorted(self._fresh(self._read()).leases, key=lambda held: -held.lease.created)

    def providers(self) -> list[JournalProvider]:
        """The providers that may have leases of this home, the last used first."""
        return sorted(self._fresh(self._read()).providers, key=lambda provider: -provider.used)

    def note_provider(self, peer_id: str, addrs: Sequence[str]) -> None:
        """Record that something is about to be committed at this peer."""
        self._change(lambda contents: self._with_provider(contents, peer_id, addrs))

    def note(self, peer_id: str, leases: Iterable[Lease], *, kept: bool = False) -> None:
        """Record leases as their provider reported them. A lease that is `kept` stays so."""
        noted = {lease.lease_id: lease for lease in leases}

        def change(contents: _Contents) -> _Contents:
            before = [held for held in contents.leases if held.peer_id == peer_id and held.lease.lease_id in noted]
            already = {held.lease.lease_id for held in before if held.kept}
            now = self._clock()
            new = [
                HeldLease(peer_id=peer_id, lease=lease, seen=now, kept=kept or lease.lease_id in already)
                for lease in noted.values()
            ]
            return replace(contents, leases=(*(held for held in contents.leases if held not in before), *new))

        self._change(change)

    def forget(self, peer_id: str, lease_ids: Collection[str]) -> None:
        """Remove leases at this peer that have ended."""
        self._change(
            lambda contents: replace(
                contents,
                leases=tuple(
                    held for held in contents.leases if held.peer_id != peer_id or held.lease.lease_id not in lease_ids
                ),
            )
        )

    def replace_all(self, peer_id: str, leases: Sequence[Lease]) -> None:
        """Replace all leases that this home has at the peer by those that its `list` reported."""
        gone = {held.lease.lease_id for held in self.leases() if held.peer_id == peer_id}
        gone -= {lease.lease_id for lease in leases}
        self.note(peer_id, leases)
        self.forget(peer_id, gone)

    def _with_provider(self, contents: _Contents, peer_id: str, addrs: Sequence[str]) -> _Contents:
        before = next((one for one in contents.providers if one.peer_id == peer_id), None)
        known = before.addrs if before else ()
        provider = JournalProvider(
            peer_id=peer_id, addrs=tuple(dict.fromkeys((*addrs, *known)))[:8], used=self._clock()
        )
        others = tuple(one for one in contents.providers if one.peer_id != peer_id)
        return replace(contents, providers=(*others, provider)[-_MOST_PROVIDERS:])

    def _fresh(self, contents: _Contents) -> _Contents:
        now = self._clock()
        leases = [
            held for held in contents.leases if held.lease.deadline is None or held.lease.deadline + _KEEP_LEASE > now
        ]
        using = {held.peer_id for held in leases}
        providers = [one for one in contents.providers if one.peer_id in using or one.used + _KEEP_PROVIDER > now]
        return _Contents(leases=tuple(leases[-_MOST_LEASES:]), providers=tuple(providers))

    def _change(self, change: Callable[[_Contents], _Contents]) -> None:
        with self._locked():
            contents = self._fresh(change(self._read()))
            write_private(self._path, msgspec.json.encode(contents, enc_hook=encode_value))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(self._path.with_suffix(".lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            # Closing the file releases the lock.
            os.close(lock)

    def _read(self) -> _Contents:
        try:
            contents = _decoder.decode(read_state(self._path, _MOST_READ))
            if contents.version != _VERSION:
                raise ValueError(f"it is of version {contents.version}")
        except FileNotFoundError:
            return _Contents()
        except (OSError, ValueError, RecursionError) as error:
            set_aside(self._path, error)
            return _Contents()
        return contents
