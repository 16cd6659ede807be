"""The file of the known peers: written whole or not at all, shared by all programs of one home.

Rules:
1. The file is replaced in one step, with mode 0600. It is read and written under a lock of its own, so that a running
   peer and its owner's commands may both write it: each writer first merges what others wrote.
2. Of two entries for one peer the later one is kept. Entries are removed only by age and by number, which gives the
same
   result for all writers.
3. An invalid file is renamed, never overwritten.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from dms_resources.components import FreeResources
from dms_resources.private_files import write_private
from dms_resources.units import decode_value, encode_value

from ..home.state_files import read_state, set_aside

__all__ = ["FORGET_AFTER", "KnownPeer", "PeersFile", "merge_peers"]

# Seconds without a sign of life after which a peer is forgotten.
FORGET_AFTER: Final = 30 * 86400.0

_VERSION: Final = 1
# Bytes. A larger file was not written by this program.
_MOST_READ: Final = 64 * 1024 * 1024


class KnownPeer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A peer that answered at least once.

    `addrs` are its addresses, the newest first. `free` is what it reported at `free_at`. `failures` counts the failed
    attempts to reach it since it was last seen. Times are in Unix seconds.
    """

    peer_id: str
    addrs: tuple[str, ...]
    last_seen: float
    free: FreeResources | None = None
    free_at: float | None = None
    failures: int = 0
    last_failure: float = 0.0

    @property
    def touched(self) -> float:
        """When something was last learned about it."""
        return max(self.last_seen, self.last_failure)


class _Contents(Struct, frozen=True):
    version: int
    peers: tuple[KnownPeer, ...]


_decoder: Final = msgspec.json.Decoder(_Contents, dec_hook=decode_value)


def merge_peers(
    ours: Iterable[KnownPeer], theirs: Iterable[KnownPeer], *, most: int, now: float
) -> dict[str, KnownPeer]:
    """Merge both tables by peer id, the least recently seen first. Keeps at most `most` peers and no forgotten ones."""
    merged: dict[str, KnownPeer] = {}
    for peer in (*theirs, *ours):
        other = merged.get(peer.peer_id)
        if other is None or peer.touched >= other.touched:
            merged[peer.peer_id] = peer
    kept = sorted(
        # A time in the future comes from another clock, and would stay for ever.
        (peer for peer in merged.values() if now - FORGET_AFTER < peer.last_seen <= now + FORGET_AFTER),
        key=lambda peer: peer.last_seen,
    )
    return {peer.peer_id: peer for peer in kept[max(0, len(kept) - most) :]}


class PeersFile:
    """Reads and writes the table. Every method blocks on the disk."""

    def __init__(self, path: Path, most: int = 4096) -> None:
        self._path = path
        self._most = most

    def load(self) -> dict[str, KnownPeer]:
        """Read the file. Raises OSError. A damaged file is renamed, and this is logged."""
        with self._locked():
            return merge_peers((), self._read(), most=self._most, now=time.time())

    def save(self, peers: Mapping[str, KnownPeer]) -> dict[str, KnownPeer]:
        """Write the table together with what others wrote, and return that. Raises OSError; then nothing
        has changed.
        """
        with self._locked():
            merged = merge_peers(peers.values(), self._read(), most=self._most, now=time.time())
            write_private(
                self._path, msgspec.json.encode(_Contents(_VERSION, tuple(merged.values())), enc_hook=encode_value)
            )
            return merged

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            # Closing the file releases the lock.
            os.close(lock)

    def _read(self) -> tuple[KnownPeer, ...]:
        try:
            raw = read_state(self._path, _MOST_READ)
        except FileNotFoundError:
            return ()
        except OSError as error:
            set_aside(self._path, error)
            return ()
        try:
            contents = _decoder.decode(raw)
            if contents.version != _VERSION:
                raise ValueError(f"it is of version {contents.version}")
        except (ValueError, RecursionError) as error:
            set_aside(self._path, error)
            return ()
        return contents.peers
