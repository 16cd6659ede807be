"""Targets that read bytes: each takes any bytes and raises only where something is wrong with the reader.

A reader may refuse with its own coded error and nothing else; what it accepts survives being written and read again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from dms_peer.ensemble_file import parse_ensemble
from dms_peer.envelopes import open_envelope
from dms_peer.errors import DocumentError, EnvelopeError
from dms_peer.signing import EnvelopeChecker
from dms_protocols.cbor import decode_map, encode_deterministic, encode_fast
from dms_protocols.conversion import from_map, sealed_bytes, to_map
from dms_protocols.errors import CBORError, FrameError, MessageError, ProtocolError
from dms_protocols.frames import FrameReader
from dms_protocols.messages import allocation, bid, resources
from dms_protocols.messages.bid import BID_DOMAIN, BID_PAYLOAD_TYPE
from dms_protocols.signing import open_bid
from dms_protocols.wire import read_id
from dms_resources.components import FreeResources, MachineResources, OnboardedResources
from dms_resources.errors import MachineFileError, StorageError
from dms_resources.machine_file import parse_machine
from dms_resources.storage import SQLiteStorage

__all__ = ["PARSERS", "message_types"]

_FRAME_LIMIT: Final = 4096
_SKIP_LIMIT: Final = 16384


def fuzz_frames(data: bytes) -> None:
    """The reader of frames: the same frames whether the bytes come whole or in pieces, and little is kept."""
    assert _frames(data, len(data) or 1) == _frames(data, 1 + data[0] % 7 if data else 1)


def _frames(data: bytes, step: int) -> list[object]:
    reader, found = FrameReader(_FRAME_LIMIT, _SKIP_LIMIT), []
    try:
        for begin in range(0, len(data), step):
            reader.feed(data[begin : begin + step])
            for frame in reader:
                found.append(frame)
                assert not isinstance(frame, bytes) or len(frame) <= _FRAME_LIMIT
            assert reader.buffered <= _FRAME_LIMIT + step + 16
    except FrameError as error:
        found.append(error.code)
    return found


def fuzz_cbor(data: bytes) -> None:
    """The decoder: what it accepts is a map within its limits, and has one deterministic encoding."""
    try:
        decoded = decode_map(data, max_depth=16, max_items=1024)
    except CBORError:
        return
    encoded = encode_deterministic(decoded)
    assert encode_deterministic(decode_map(encoded, max_depth=16, max_items=1024)) == encoded
    assert len(encode_fast(decoded)) <= 9 * len(data) + 16


def message_types() -> dict[str, type[msgspec.Struct]]:
    """Every message that one side may read, by name."""
    found: dict[str, type[msgspec.Struct]] = {
        kind.__name__: kind for kind in (FreeResources, MachineResources, OnboardedResources)
    }
    for module in (allocation, bid, resources):
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                found[name] = kind
    return found


_TYPES: Final = tuple(message_types().values())


def fuzz_messages(data: bytes) -> None:
    """Every type of message: refused with the path of what is wrong, or kept as it is."""
    try:
        decoded = decode_map(data, max_depth=16, max_items=4096)
    except CBORError:
        return
    with contextlib.suppress(MessageError):
        read_id(decoded)
    for kind in _TYPES:
        try:
            message = from_map(decoded, kind)
        except MessageError:
            continue
        assert from_map(to_map(message), kind) == message
        sealed_bytes(message)


def fuzz_envelopes(data: bytes) -> None:
    """Signed envelopes: EnvelopeError, or bytes that somebody has really signed."""
    with contextlib.suppress(EnvelopeError):
        open_envelope(data, BID_DOMAIN, BID_PAYLOAD_TYPE)
    with contextlib.suppress(ProtocolError):
        open_bid(data, EnvelopeChecker())


def fuzz_ensembles(data: bytes) -> None:
    """Ensemble files: a DocumentError with one line for people, or a request that can be sent."""
    try:
        ensemble = parse_ensemble(data, "ensemble.yaml")
    except DocumentError:
        return
    asked = ensemble.asked(deadline=1.0, nonce=1)
    assert from_map(decode_map(encode_deterministic(to_map(asked))), type(asked)) == asked


def fuzz_machines(data: bytes) -> None:
    """Descriptions of machines: MachineFileError and nothing else."""
    with contextlib.suppress(MachineFileError):
        parse_machine(data, "machine.json")


@functools.cache
def _ledger_path() -> Path:
    memory = Path("/dev/shm")
    place = tempfile.mkdtemp(prefix="dms-fuzzing-", dir=memory if memory.is_dir() else None)
    return Path(place) / "ledger.db"


def fuzz_ledgers(data: bytes) -> None:
    """Ledger files: opened and read, or refused with what to do; never emptied in silence."""
    path = _ledger_path()
    for leftover in path.parent.iterdir():
        leftover.unlink()
    path.write_bytes(data)
    before = os.stat(path).st_size
    try:
        with SQLiteStorage(path, boot_id="boot") as storage:
            storage.load()
    except StorageError:
        assert not before or path.exists()


PARSERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "frames": fuzz_frames,
    "cbor": fuzz_cbor,
    "messages": fuzz_messages,
    "envelopes": fuzz_envelopes,
    "ensembles": fuzz_ensembles,
    "machines": fuzz_machines,
    "ledgers": fuzz_ledgers,
}
"""The targets by name."""
