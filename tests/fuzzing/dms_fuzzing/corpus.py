"""Seeds for fuzzing: valid bytes of each kind, from the test vectors and from this peer's own code."""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX

from dms_host.keys.identity import new_identity
from dms_peer.signing import IdentitySigner
from dms_protocols.adverts.adverts import seal_advert
from dms_protocols.adverts.broadcasts import seal_broadcast
from dms_protocols.bidding.signing import seal_bid
from dms_protocols.messages.adverts import CapacityAdvert
from dms_protocols.messages.bid import Bid
from dms_protocols.messages.broadcast import BroadcastRequest
from dms_protocols.wire.cbor import encode_deterministic
from dms_protocols.wire.conversion import from_map
from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.machine.file import machine_document
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores

from .granted import TOKENS
from .parsers import FUZZED_TOPIC

__all__ = ["corpus"]

_ENSEMBLE = b"""\
request:
  - node_id: training
    executors: [docker]
    resources:
      cpu: {cores: 2}
      ram: {size: 16GiB}
      disk: {size: 100GiB}
      gpus: [{vram: 16GiB, vendor: NVIDIA}]
    location: {accept: [{continent: Europe}], reject: [{country: FR}]}
    public_ports: {static: [8080], dynamic: 2}
  - node_id: database
    resources: {cpu: {cores: 0.5}, ram: {size: 1073741824}}
peer_exclusion: []
"""
_TERMS = b"""location: {continent: Europe, country: DE}
executors: [docker]
valid_seconds: 5m
prices: {currency: EUR, core: 0.1, ram_gib: 0.01, gpu: 1.25}
"""
_ACCESS = b"""operations:
  machine: nobody
  commit: {peers: [12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG], token: true}
others: anyone
shares: {peer: {requests: 100, capacity: 250, longest_ttl: 12h}, assured_requests: 10}
"""
_LIMITS = b"host: {max_connections: 500, frame_timeout: 20s}\nservice: {frame_bytes: 32KiB}\n"
_MACHINE = MachineResources(cpu=CPU(cores=Cores.of(4)), ram=RAM(size=8 * GIB), disk=Disk(size=100 * GIB), gpus=())


def corpus(target: str) -> list[bytes]:
    """Seeds for one target."""
    vectors = _vectors()
    frames = [bytes.fromhex(vector["hex"]) for vector in (*vectors["frames"], *vectors["refused"])]
    match target:
        case "frames":
            return [*frames, b"".join(frames)]
        case "cbor" | "messages":
            return [encode_deterministic(message) for message in _maps(vectors)]
        case "envelopes":
            bid = next(found for found in map(_as_bid, _maps(vectors)) if found is not None)
            return [seal_bid(bid, IdentitySigner(new_identity(bytes(32))))]
        case "adverts":
            return _published()
        case "gossip":
            return [_gossiped()]
        case "tokens":
            return list(TOKENS)
        case "owner_files":
            return [_TERMS, _ACCESS, _LIMITS]
        case "ensembles":
            return [_ENSEMBLE]
        case "machines":
            return [json.dumps(machine_document(_MACHINE)).encode()]
        case "ledgers":
            return [_ledger()]
        case _:
            return frames


def _published() -> list[bytes]:
    """A signed advert, and a signed broadcast request."""
    identity = new_identity(bytes(32))
    signer, derived = IdentitySigner(identity), _vectors()["derived"]
    advert = from_map(_bytes(derived["advert"]) | {"peer_id": identity.peer_id}, CapacityAdvert)
    broadcast = from_map(_bytes(derived["broadcast"]) | {"requester": identity.peer_id}, BroadcastRequest)
    return [seal_advert(advert, signer), seal_broadcast(broadcast, signer)]


def _gossiped() -> bytes:
    """An RPC with some of everything."""
    identity = new_identity(bytes(32))
    origin = ID.from_base58(identity.peer_id).to_bytes()
    message = rpc_pb2.Message(data=b"news", topicIDs=[FUZZED_TOPIC], from_id=origin, seqno=bytes(8))
    signed = PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
    message.signature, message.key = identity.key_pair().private_key.sign(signed), origin[2:]
    rpc = rpc_pb2.RPC(
        publish=[message],
        subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=FUZZED_TOPIC)],
        control=rpc_pb2.ControlMessage(
            ihave=[rpc_pb2.ControlIHave(topicID=FUZZED_TOPIC, messageIDs=[origin + bytes(8)])],
            iwant=[rpc_pb2.ControlIWant(messageIDs=[origin + bytes(8)])],
            graft=[rpc_pb2.ControlGraft(topicID=FUZZED_TOPIC)],
            prune=[rpc_pb2.ControlPrune(topicID=FUZZED_TOPIC, backoff=60, peers=[rpc_pb2.PeerInfo(peerID=origin)])],
            idontwant=[rpc_pb2.ControlIDontWant(messageIDs=[b"x"])],
        ),
        senderRecord=b"record",
    )
    return bytes(rpc.SerializeToString())


def _vectors() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("dms_protocols") / "test_vectors.json").read_text())
    return found


def _maps(value: Any) -> list[dict[str, Any]]:
    """Every map within the vectors, at any depth."""
    if isinstance(value, list):
        return [found for one in value for found in _maps(one)]
    if not isinstance(value, dict):
        return []
    plain = {key: _bytes(one) for key, one in value.items()}
    return [plain, *(found for one in value.values() for found in _maps(one))]


def _bytes(value: Any) -> Any:
    """Byte strings are written as {"hex": ...} in the vectors."""
    if isinstance(value, dict):
        return (
            bytes.fromhex(value["hex"]) if set(value) == {"hex"} else {key: _bytes(one) for key, one in value.items()}
        )
    return [_bytes(one) for one in value] if isinstance(value, list) else value


def _as_bid(value: dict[str, Any]) -> Bid | None:
    try:
        return from_map(value, Bid)
    except Exception:
        return None


def _ledger() -> bytes:
    """The file of a ledger with some history."""

    async def keep(path: Path) -> None:
        async with open_manager(path, _MACHINE) as manager:
            offered = OnboardedResources(cpu=CPU(cores=Cores.of(2)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=())
            await manager.update_onboarded_resources(offered)
            await manager.commit_resources("lease", Demand(cpu=CPUDemand(cores=Cores.of(1))), holder="peer", ttl=1e6)

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "ledger.db"
        trio.run(keep, path)
        return path.read_bytes()
