"""Which peers of this machine offer its real hardware now, and what each of them offers.

A peer registers itself with a locked file in a folder that all users share. The kernel releases the lock when the peer
ends, however it ends. The file has the id of the process and what it offers, which it tells every peer of the network
anyway. Peers in other containers do not see each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from ..components import MachineResources, OnboardedResources
from ..errors import MachineInUseError
from .hardware.disk import is_in_memory
from .hardware.roots import HOST, Roots
from .sharing import Bound, OtherPeer, PublishedOffer, offers_beyond, published_offer, read_bounds, shared_ports

__all__ = ["Registration", "shared_folder"]

_MOST_FILES: Final = 4096
_NAME: Final = re.compile(r"[0-9]{1,10}-[0-9a-f]{32}")
_LARGEST_FILE: Final = 256 * 1024
# A change is published in milliseconds. A process that stops in the middle must not stop all others.
_LONGEST_WAIT: Final = 2.0
_RETRY: Final = 0.02


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a file."""

    process: int
    offer: PublishedOffer


def shared_folder() -> Path:
    """The folder of the registry: below `/run/lock` where there is one that all users may write to."""
    lock = Path("/run/lock")
    return (lock if os.access(lock, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())) / "dms-peer"


class Registration:
    """What this process may offer beside the other peers of this machine.

    All methods block on disk for milliseconds. With `share_machine` nothing is refused: the owner answers for it that
    the offers are parts of the machine, such as halves of the day.
    """

    def __init__(
        self, home: Path, machine: MachineResources, folder: Path | None = None, *, share_machine: bool = False
    ) -> None:
        self._home = home
        self._machine = machine
        self._path = (folder or shared_folder()) / _name_of(home)
        self._share_machine = share_machine
        self._descriptor: int | None = None

    def describe(self, offer: OnboardedResources | None, roots: Roots = HOST) -> PublishedOffer:
        """Return what this process publishes of an offer, with the bounds around it as they are now."""
        bounds: tuple[Bound, ...] = read_bounds(self._machine, self._home, roots)
        return published_offer(offer, self._machine, bounds, in_memory=is_in_memory(self._home, roots))

    def check(self, offer: OnboardedResources | None) -> None:
        """Raise `MachineInUseError` if this offer and those of the other running peers exceed what there is."""
        self._refuse_beyond(self.describe(offer))

    def publish(self, offer: OnboardedResources | None) -> None:
        """Check an offer as `check` does, and publish it. Of two peers that do so at once, one is refused."""
        published = self.describe(offer)
        with _one_at_a_time(self._path.parent):
            self._refuse_beyond(published)
            self._write(published)

    def restore(self, offer: OnboardedResources | None) -> None:
        """Publish an offer that stands after all, and refuse nothing."""
        self._write(self.describe(offer))

    def sentences(self, offer: OnboardedResources | None) -> tuple[str, ...]:
        """What the owner of this offer should know of the other running peers; nothing without one. Never raises.

        A sentence on each of them, on offers beyond what there is, and on ports that are promised twice.
        """
        others = self._others()
        if not others:
            return ()
        published = self.describe(offer)
        seen = tuple(f"process {other.process} is another peer on this machine" for other in others)
        return seen + offers_beyond(published, others) + shared_ports(published, others)

    def _refuse_beyond(self, published: PublishedOffer) -> None:
        problems = () if self._share_machine else offers_beyond(published, self._others())
        if problems:
            raise MachineInUseError(
                "peers of other homes offer this machine too: " + "; ".join(problems),
                hint="offer less here or there with `dms-peer onboard`, stop the other peer, or use --share-machine if "
                "the offers are meant for different times",
            )

    def _others(self) -> tuple[OtherPeer, ...]:
        found = (_peer_of(path) for path in _files_of(self._path.parent) if path != self._path)
        return tuple(peer for peer in found if peer is not None)

    def _write(self, published: PublishedOffer) -> None:
        if self._descriptor is None:
            return
        content = msgspec.json.encode(_Entry(process=os.getpid(), offer=published))
        # A registry that is full is no reason not to run.
        with contextlib.suppress(OSError):
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, content[:_LARGEST_FILE], 0)

    @contextmanager
    def registered(self, offer: OnboardedResources | None) -> Iterator[None]:
        """Register this process with an offer while the block runs. Raises `MachineInUseError` as `publish` does.

        A registry that cannot be written is no reason not to run: the peer is not registered then.
        """
        _make_folder(self._path.parent)
        with _one_at_a_time(self._path.parent):
            _remove_left(self._path.parent)
            self._descriptor = _open_locked(self._path)
        try:
            self.publish(offer)
            yield
        finally:
            if self._descriptor is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink()
                os.close(self._descriptor)
                self._descriptor = None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the lock of the registry if it can be had within two seconds."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + _LONGEST_WAIT
        while not _lock(descriptor, fcntl.LOCK_EX) and time.monotonic() < until:
            time.sleep(_RETRY)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _make_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.mkdir()
        # As for /tmp: all users may add files, and remove their own.
        folder.chmod(0o1777)


def _files_of(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(folder) if _NAME.fullmatch(name)]
        yield from (folder / name for name in sorted(names)[:_MOST_FILES])


def _remove_left(folder: Path) -> None:
    """Remove the files of peers that were killed, so that they do not pile up. Needs the registry's lock."""
    for path in _files_of(folder):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if _lock(descriptor, fcntl.LOCK_EX):
                    path.unlink()
            finally:
                os.close(descriptor)


def _open_locked(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError:
        return None
    if not _lock(descriptor, fcntl.LOCK_EX):
        os.close(descriptor)
        return None
    return descriptor


def _peer_of(path: Path) -> OtherPeer | None:
    """Return the peer that has this file locked; None without one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(os.pread(descriptor, _LARGEST_FILE, 0))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _parse(content: bytes) -> OtherPeer:
    # Any user may write such a file: what makes no sense is a peer whose offer is unknown.
    try:
        entry = msgspec.json.decode(content, type=_Entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return OtherPeer(process="unknown")
    return OtherPeer(process=str(entry.process), offer=entry.offer)


def _name_of(home: Path) -> str:
    return f"{os.getuid()}-{hashlib.sha256(os.path.realpath(home).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
