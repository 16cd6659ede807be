"""Targets that read bytes: each accepts any bytes and raises only if the reader has a defect.

A reader may refuse with its own coded error and nothing else. What it accepts is the same after it is written and read
again.
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
from libp2p.pubsub.validators import signature_validator

from dms_host.errors import BadEnvelopeError
from dms_host.keys.envelopes import open_envelope
from dms_peer.config.access import parse_access
from dms_peer.config.ensemble import parse_ensemble
from dms_peer.config.limits import parse_limits
from dms_peer.config.terms import parse_terms
from dms_peer.discovery.gossip.limits import GossipLimits
from dms_peer.discovery.gossip.rpcs import GossipViolationError, read_rpc
from dms_peer.errors import DocumentError
from dms_peer.signing import EnvelopeChecker
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.broadcasts import open_broadcast
from dms_protocols.bidding.signing import open_bid
from dms_protocols.errors import AccessError, CBORError, FrameError, MessageError, ProtocolError
from dms_protocols.messages import adverts, allocation, bid, broadcast, peers, resources
from dms_protocols.messages.bid import BID_DOMAIN, BID_PAYLOAD_TYPE
from dms_protocols.tokens.biscuits import granter_of
from dms_protocols.wire.cbor import decode_map, encode_deterministic, encode_fast
from dms_protocols.wire.conversion import from_map, sealed_bytes, to_map
from dms_protocols.wire.envelope import read_id
from dms_protocols.wire.frames import FrameReader
from dms_resources.components import FreeResources, MachineResources, OnboardedResources
from dms_resources.errors import MachineFileError, StorageError
from dms_resources.ledger.storage import SQLiteStorage
from dms_resources.machine.file import parse_machine

from .granted import CHECKER, GRANTER, TOKENS

__all__ = ["FUZZED_AT", "FUZZED_TOPIC", "PARSERS", "message_types"]

FUZZED_TOPIC: Final = "/fuzzed/topic/1.0.0"
FUZZED_AT: Final = 1_700_000_000.0
"""The time at which adverts and broadcast requests are read (Unix seconds)."""

_FRAME_LIMIT: Final = 4096
_SKIP_LIMIT: Final = 16384


def fuzz_frames(data: bytes) -> None:
    """The reader of frames: the frames are the same whether the bytes arrive whole or in pieces, and little is kept."""
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
    for module in (adverts, allocation, bid, broadcast, peers, resources):
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                found[name] = kind
    return found


_TYPES: Final = tuple(message_types().values())


def fuzz_messages(data: bytes) -> None:
    """Every type of message: refused with the path of the invalid field, or accepted unchanged."""
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
    """Signed envelopes: BadEnvelopeError, or bytes that were really signed."""
    with contextlib.suppress(BadEnvelopeError):
        open_envelope(data, BID_DOMAIN, BID_PAYLOAD_TYPE)
    with contextlib.suppress(ProtocolError):
        open_bid(data, EnvelopeChecker())


def fuzz_adverts(data: bytes) -> None:
    """The table of adverts and the reader of broadcast requests: a verdict, or one of the coded errors."""
    table = AdvertTable(EnvelopeChecker(), most=4, clock=lambda: FUZZED_AT)
    verdict = table.accept(data)
    assert (verdict.outcome == "new") == (len(table) == 1)
    assert bool(verdict.code) == (verdict.outcome == "invalid")
    with contextlib.suppress(ProtocolError):
        open_broadcast(data, EnvelopeChecker(), now=FUZZED_AT)


def fuzz_gossip(data: bytes) -> None:
    """RPCs of gossipsub: refused, or reduced to what is allowed and within its limits."""
    limits = GossipLimits()
    try:
        rpc = read_rpc(data, {FUZZED_TOPIC}, limits)
    except GossipViolationError:
        return
    assert len(rpc.subscriptions) <= 1
    assert all(list(message.topicIDs) == [FUZZED_TOPIC] for message in rpc.publish)
    for message in rpc.publish:
        signature_validator(message)
    assert not rpc.HasField("senderRecord")
    assert sum(len(ihave.messageIDs) for ihave in rpc.control.ihave) <= limits.offered_ids
    assert sum(len(iwant.messageIDs) for iwant in rpc.control.iwant) <= limits.asked_ids
    assert not any(prune.peers for prune in rpc.control.prune)
    assert not rpc.control.HasField("extensions")
    assert not [*rpc.control.observe, *rpc.control.unobserve, *rpc.control.idontwant]


_GRANTED: Final = [CHECKER.check(token, operation="commit", peer=GRANTER) for token in TOKENS]


def fuzz_tokens(data: bytes) -> None:
    """Tokens: an AccessError, or what was really granted."""
    with contextlib.suppress(AccessError):
        assert CHECKER.check(data, operation="commit", peer=GRANTER) in _GRANTED, "nobody grants in another's name"
    with contextlib.suppress(AccessError):
        granter_of(data)


def fuzz_owner_files(data: bytes) -> None:
    """The owner's other files: terms, access, limits. Each gives a DocumentError with a position, or settings."""
    with contextlib.suppress(DocumentError):
        parse_terms(data, "file.yaml", Path("/nowhere"))
    with contextlib.suppress(DocumentError):
        parse_access(data, "file.yaml")
    with contextlib.suppress(DocumentError):
        parse_limits(data, "file.yaml")


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
    """Ledger files: opened and read, or refused with a hint; never emptied silently."""
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
    "adverts": fuzz_adverts,
    "gossip": fuzz_gossip,
    "tokens": fuzz_tokens,
    "ensembles": fuzz_ensembles,
    "owner_files": fuzz_owner_files,
    "machines": fuzz_machines,
    "ledgers": fuzz_ledgers,
}
"""The targets by name."""
