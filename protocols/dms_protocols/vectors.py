"""Test vectors of the wire, for clients in any language: `python -m dms_protocols.vectors` prints them as JSON.

`frames` are whole frames in hexadecimal, each with its message (byte strings as {"hex": …}) and its protocol. `refused`
are bytes that a service of that protocol answers with an error of that code. `derived` are values that both sides
compute.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from dms_resources.components import CPU, GPU, RAM, Disk, FreeResources, GPUVendor, Resources
from dms_resources.demands import CPUDemand, CPUShortage, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand
from dms_resources.errors import EvictedError
from dms_resources.ledger.leases import EndedLease, EndReason, Lease, LeaseState, Limit, Notice
from dms_resources.refusals import AccountError, InsufficientError
from dms_resources.units import Cores

from .adverts.classes import CapabilityClass, Dimension
from .bidding.refusals import refusal
from .bidding.versions import BID_1_1
from .derived_vectors import envelope_vectors, number_vectors
from .errors import BidError, BusyError, JobError, ProtocolError
from .messages import adverts, allocation, bid, broadcast, job, peers, resources, tunnel
from .messages.bid import BID_DOMAIN, BID_PAYLOAD_TYPE
from .protocol_ids import (
    ALLOCATION_PROTOCOL_1_1,
    BID_DELIVERY_PROTOCOL,
    BID_PROTOCOL_1_1,
    JOB_PROTOCOL,
    PEERS_PROTOCOL,
    RESOURCES_PROTOCOL,
    TUNNEL_PROTOCOL,
)
from .rpc.service import CancelRequest
from .tokens.biscuits import open_token
from .wire.cbor import decode_map, encode_deterministic
from .wire.conversion import sealed_bytes, to_bytes, to_map
from .wire.envelope import add_token, encode_error, encode_event, encode_ok, encode_request
from .wire.error_bodies import encode_error_body
from .wire.frames import FrameReader, encode_frame

__all__ = ["make_vectors"]

_GIB: Final = 2**30
_DEMAND: Final = Demand(
    cpu=CPUDemand(cores=Cores.of("1.5")),
    ram=RAMDemand(size=4 * _GIB),
    disk=DiskDemand(size=10 * _GIB),
    gpus=(GPUDemand(vram=8 * _GIB, vendor=GPUVendor.NVIDIA),),
)
_RESOURCES: Final = Resources(
    cpu=CPU(cores=Cores.of("1.5"), architecture="x86_64"),
    ram=RAM(size=4 * _GIB),
    disk=Disk(size=10 * _GIB),
    gpus=(GPU(uuid="GPU-1", index=0, vendor=GPUVendor.NVIDIA, model="A100", vram=8 * _GIB),),
)
_FREE: Final = FreeResources(
    cpu=CPU(cores=Cores.of(6), architecture="x86_64"),
    ram=RAM(size=28 * _GIB),
    disk=Disk(size=90 * _GIB),
    gpus=(GPU(uuid="GPU-1", index=0, vendor=GPUVendor.NVIDIA, model="A100", vram=32 * _GIB),),
    ports=1024,
    onboarded=True,
    draining=False,
    simulated=False,
)
_ENSEMBLE: Final = bid.EnsembleRequest(
    id="ensemble-1",
    nonce=7,
    deadline=1_700_000_005.0,
    request=(
        bid.NodeRequest(
            node_id="node-1",
            executors=("docker",),
            resources=_DEMAND,
            location=bid.Location(accept=(bid.Place(continent="Europe"),)),
            public_ports=PortDemand(static=(16384,), dynamic=2),
        ),
    ),
    peer_exclusion=("peer-of-nobody",),
)
_DIGEST: Final = bid.request_digest(to_map(_ENSEMBLE))
_LEASE_ID: Final = bid.bid_lease_id(
    requester="the-requester", digest=_DIGEST, node_id="node-1", provider="the-provider"
)
_BID: Final = bid.Bid(
    request_digest=_DIGEST,
    ensemble_id="ensemble-1",
    nonce=7,
    node_id="node-1",
    lease_id=_LEASE_ID,
    requester="the-requester",
    provider="the-provider",
    demand=_DEMAND,
    public_ports=PortDemand(static=(16384,), dynamic=2),
    resources=_RESOURCES,
    valid_until=1_700_000_300.0,
    price=bid.Price(micros_per_hour=250_000, currency="EUR"),
)
_ADVERT: Final = adverts.CapacityAdvert(
    peer_id="the-provider",
    addrs=("/ip4/192.0.2.1/tcp/4001/p2p/the-provider",),
    sequence=1_700_000_000_000,
    issued_at=1_700_000_000.0,
    ttl=600.0,
    free=_FREE,
    location=bid.Place(continent="Europe", country="FR"),
    executors=("docker",),
)
_BROADCAST: Final = broadcast.BroadcastRequest(
    requester="the-requester",
    addrs=("/ip4/192.0.2.2/tcp/4001/p2p/the-requester",),
    ensemble=to_map(_ENSEMBLE),
    issued_at=1_700_000_000.0,
    hold=10.0,
    want=8,
)
_CLASS: Final = CapabilityClass(Dimension.VRAM, 16 * _GIB)
_LEASE: Final = Lease(
    lease_id=_LEASE_ID,
    holder="the-requester",
    state=LeaseState.COMMITTED,
    demand=_DEMAND,
    asked_ports=PortDemand(dynamic=1),
    resources=_RESOURCES,
    ports=(16385,),
    fence=12,
    created=1_700_000_010.0,
    ttl=60.0,
    deadline=1_700_000_070.0,
)
_ENDED: Final = EndedLease(
    lease_id=_LEASE_ID,
    holder="the-requester",
    state=LeaseState.ALLOCATED,
    fence=12,
    reason=EndReason.RELEASED,
    ended=1_700_000_080.0,
)
_SHORT: Final = InsufficientError(
    "cpu: 7 cores asked, 6 cores free of 8 cores",
    shortages=(
        CPUShortage(
            asked=CPUDemand(cores=Cores.of(7)), free=CPUDemand(cores=Cores.of(6)), total=CPUDemand(cores=Cores.of(8))
        ),
    ),
    retry_after=50.0,
)
_REFUSAL: Final = bid.Refusal(
    node_id="node-2", code="resources", message=_SHORT.message, shortages=_SHORT.shortages, retry_after=50.0
)
_REASONS: Final = (
    bid.Reason(code="location", message="this machine is in FR, which is not accepted", hint="choose another provider"),
    bid.Reason(
        code="resources",
        message=_SHORT.message,
        hint="ask for no more than what is free, or choose another provider",
        shortages=_SHORT.shortages,
        retry_after=50.0,
    ),
)
_REFUSED_TWICE: Final = refusal("node-3", _REASONS)
# Stored, because every new token has new random keys.
_TOKEN: Final = bytes.fromhex(
    "12e5010a7b0a0a6772616e7465645f62790a056c696d69740a0a6d696c6c69636f7265730a0467707573180322090a07088008120218"
    "07220f0a0d0881081203188208120310c03e220e0a0c08810812031883081202100132260a240a02081b12060805120208051a160a04"
    "0a0208050a080a062080a4a7da060a041a0208021224080012203b7f73ccbdb73110a1b8949a791ed11d4b87ac3d5d053ae8c5513760"
    "d4abf9461a40bee9491a653279a34d0fe865efdf08762c8309208247f3e9ea3d80a11664ca15e360d6a156d12220767b1d32f693321e"
    "2ea06a518891f1b74be92f72197ef3021aa4020ab9010a06636f6d6d69740a04706565720a0870726f76696465720a0c7468655f7072"
    "6f76696465721803220f0a0d0881081203188208120310a01f32270a250a02081b12060803120208031a170a090a073a050a03188408"
    "0a040a0208030a041a02080532290a270a02081b120808850812030885081a170a080a063a040a0218100a050a030885080a041a0208"
    "05322a0a280a02081b120808860812030886081a180a090a073a050a031887080a050a030886080a041a020805122408001220b85563"
    "7a003ddd49879fd93aff995058d83dab67f980cdb7db408257688474331a4029aeb8b755eee8cca6071b23f67a22d1e0cc2127c293b9"
    "ce844fa48d05134932d9fd935c6719b33bd27cc91d2751f09ae7991fd42591d8d3c0d1177f1983aa0022220a20b98d49c3d2355ac2ab"
    "81f1590aa2597b96db6f07b860485f74ac819f6f4b749e"
)
_TOKEN_KEY: Final = bytes.fromhex("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")

_JOB: Final = job.Job(
    execution=job.Execution(
        type="docker",
        image="docker.io/library/alpine:3.20",
        cmd=("sh", "-c", "/dms/run.sh"),
        environment=("EPOCHS=10",),
        working_directory="/srv",
    ),
    ports=(job.JobPort(private=80, public=16385), job.JobPort(private=9000)),
    files=(job.JobFile(name="run.sh", content=b"#!/bin/sh\n", executable=True),),
    network="outbound",
    remove=True,
)
_RUNNING: Final = job.JobStatus(
    lease_id=_LEASE_ID,
    fence=12,
    digest=job.job_digest(_JOB),
    executor="docker",
    state="running",
    created=1_700_000_020.0,
    since=1_700_000_025.0,
    output=4096,
    dropped=1024,
    ports=(job.JobPort(private=80, public=16385),),
    usage=job.JobConsumption(cpu_seconds=1.5, memory=64 * 2**20),
)
_EXITED: Final = replace(
    _RUNNING,
    state="exited",
    since=1_700_000_090.0,
    exit=job.JobExit(kind="memory", signal=9, oom_kills=1, message="more memory than the lease has"),
    reason="out of memory",
    usage=None,
)

_REQUESTS: Final[tuple[msgspec.Struct, ...]] = (
    resources.FreeRequest(),
    resources.OnboardedRequest(),
    resources.AllocatedRequest(),
    resources.MachineRequest(),
    resources.UsageRequest(),
    resources.WatchRequest(),
    CancelRequest(5),
    bid.BidRequest(ensemble=to_map(_ENSEMBLE), hold=10.0),
    bid.BidRequest(ensemble=to_map(_ENSEMBLE), dry_run=True),
    allocation.CommitRequest(bids=(b"envelope",), ttl=60.0),
    allocation.RenewRequest(lease_id=_LEASE_ID, ttl=60.0, fence=12),
    allocation.AllocateRequest(lease_id=_LEASE_ID, fence=12),
    allocation.ReleaseRequest(lease_id=_LEASE_ID),
    allocation.ListRequest(after="a", limit=10),
    peers.AdvertiseRequest(advert=b"envelope"),
    peers.AdvertsRequest(limit=10, after="a-peer", demand=_DEMAND),
    broadcast.DeliverBidsRequest(ensemble_id="ensemble-1", nonce=7, bids=(b"envelope",), refusals=(_REFUSAL,)),
    job.StartJobRequest(lease_id=_LEASE_ID, fence=12, job=_JOB),
    job.JobStatusRequest(lease_id=_LEASE_ID),
    job.JobWatchRequest(lease_id=_LEASE_ID),
    job.JobLogsRequest(lease_id=_LEASE_ID, offset=1024, follow=True, limit=15),
    job.StopJobRequest(lease_id=_LEASE_ID, grace=2.5),
    tunnel.TunnelRequest(lease_id=_LEASE_ID, port=9000),
)
_ANSWERS: Final[tuple[tuple[str, str, msgspec.Struct], ...]] = (
    ("the answer to free", RESOURCES_PROTOCOL, _FREE),
    ("the answer to allocated and usage", RESOURCES_PROTOCOL, _RESOURCES),
    (
        "bids on some nodes, refusals of others",
        BID_PROTOCOL_1_1,
        bid.BidAnswer(bids=(b"envelope",), refusals=(_REFUSAL,)),
    ),
    ("a refusal that names all its reasons", BID_PROTOCOL_1_1, bid.BidAnswer(bids=(), refusals=(_REFUSED_TWICE,))),
    ("the answer to a dry run", BID_PROTOCOL_1_1, bid.OfferAnswer(offers=(_BID,), refusals=())),
    ("the answer to commit", ALLOCATION_PROTOCOL_1_1, allocation.CommitAnswer(leases=(_LEASE,))),
    ("the answer to renew and allocate", ALLOCATION_PROTOCOL_1_1, allocation.LeaseAnswer(lease=_LEASE)),
    ("the answer to release", ALLOCATION_PROTOCOL_1_1, allocation.ReleaseAnswer(lease=_ENDED)),
    ("the answer to list", ALLOCATION_PROTOCOL_1_1, allocation.ListAnswer(leases=(_LEASE,), more=False)),
    ("the answer to advertise", PEERS_PROTOCOL, peers.AdvertiseAnswer(again_after=60.0)),
    ("the answer to adverts", PEERS_PROTOCOL, peers.AdvertsAnswer(adverts=(b"envelope",), next="another-peer")),
    ("the answer to deliver_bids", BID_DELIVERY_PROTOCOL, broadcast.DeliverBidsAnswer()),
    ("the answer to job_start and job_status", JOB_PROTOCOL, job.JobAnswer(job=_RUNNING)),
    ("the answer to job_stop", JOB_PROTOCOL, job.JobAnswer(job=_EXITED)),
    ("the answer to tunnel", TUNNEL_PROTOCOL, tunnel.TunnelAnswer()),
)
_ERRORS: Final = (
    (1, BusyError("64 operations run already", retry_after=1.0)),
    (2, _SHORT),
    (None, ProtocolError("not acceptable CBOR: the message is not a map", code="bad_cbor")),
)
_OPERATIONS: Final = {
    **dict.fromkeys(("free", "onboarded", "allocated", "machine", "usage", "watch", "cancel"), RESOURCES_PROTOCOL),
    "bid_request": BID_PROTOCOL_1_1,
    **dict.fromkeys(("commit", "renew", "allocate", "release", "list"), ALLOCATION_PROTOCOL_1_1),
    **dict.fromkeys(("advertise", "adverts"), PEERS_PROTOCOL),
    "deliver_bids": BID_DELIVERY_PROTOCOL,
    **dict.fromkeys(("job_start", "job_status", "job_watch", "job_logs", "job_stop"), JOB_PROTOCOL),
    "tunnel": TUNNEL_PROTOCOL,
}
_BAD_LENGTHS: Final = (
    ("a length that is not minimal", "8000", "bad_frame"),
    ("a length of ten bytes", "80808080808080808080", "bad_frame"),
    ("a length above what is passed over", "8080808001", "frame_too_large"),
)
_MISSING: Final = "a field missing"
_BAD_PAYLOADS: Final = (
    ("an empty frame", b"", "bad_cbor"),
    ("an array", b"\x80", "bad_cbor"),
    ("a map of indefinite length", b"\xbf\xff", "bad_cbor"),
    ("a key twice", b"\xa2\x62id\x01\x62id\x02", "bad_cbor"),
    ("bytes behind the map", b"\xa0\x00", "bad_cbor"),
    ("a tagged value", b"\xa1\x62id\xc2\x41\x01", "bad_cbor"),
    ("NaN", b"\xa1\x62id\xf9\x7e\x00", "bad_cbor"),
    ("undefined", b"\xa1\x62id\xf7", "bad_cbor"),
    ("no id", b"\xa1\x62op\x64free", "bad_message"),
    ("an id that is no integer", b"\xa2\x62id\xf9\x3c\x00\x62op\x64free", "bad_message"),
    ("no operation", b"\xa1\x62id\x01", "bad_message"),
    ("an unknown operation", b"\xa2\x62id\x01\x62op\x64fly!", "unknown_operation"),
    (_MISSING, b"\xa2\x62id\x01\x62op\x66commit", "bad_message"),
)


def make_vectors() -> dict[str, Any]:
    """All vectors, as plain JSON values."""
    return {
        "frames": [_frame(meaning, protocol, frame) for meaning, protocol, frame in _frames()],
        "refused": [
            {"meaning": meaning, "protocol": protocol, "hex": data, "code": code}
            for meaning, protocol, data, code in _refused()
        ],
        "derived": {
            "request": _plain(to_map(_ENSEMBLE)),
            "request_deterministic": encode_deterministic(to_map(_ENSEMBLE)).hex(),
            "request_digest": _DIGEST.hex(),
            "request_digest_1_1": BID_1_1.digest(to_map(_ENSEMBLE)).hex(),
            "hard_numbers": number_vectors(),
            "envelopes": envelope_vectors(BID_DOMAIN, BID_PAYLOAD_TYPE, sealed_bytes(_BID)),
            "lease_id": {
                "requester": "the-requester",
                "node_id": "node-1",
                "provider": "the-provider",
                "is": _LEASE_ID,
            },
            "bid": _plain(to_map(_BID)),
            "bid_deterministic": sealed_bytes(_BID).hex(),
            "advert": _plain(to_map(_ADVERT)),
            "advert_deterministic": sealed_bytes(_ADVERT).hex(),
            "broadcast": _plain(to_map(_BROADCAST)),
            "broadcast_deterministic": sealed_bytes(_BROADCAST).hex(),
            "token": {
                "hex": _TOKEN.hex(),
                "public_key": _TOKEN_KEY.hex(),
                "grants": _plain(to_map(open_token(_TOKEN, _TOKEN_KEY).grants)),
            },
            "job": _plain(to_map(_JOB)),
            "job_deterministic": sealed_bytes(_JOB).hex(),
            "job_digest": job.job_digest(_JOB).hex(),
            "capability_class": {"name": _CLASS.name, "key": _CLASS.key.hex(), "is": str(_CLASS)},
        },
    }


def _frames() -> Iterator[tuple[str, str, bytes]]:
    for request_id, request in enumerate(_REQUESTS):
        operation = str(request.__struct_config__.tag)
        yield f"request: {operation}", _OPERATIONS[operation], encode_request(request_id, to_bytes(request))
    for answer_id, (meaning, protocol, answer) in enumerate(_ANSWERS, start=1000):
        yield meaning, protocol, encode_ok(answer_id, to_bytes(answer))
    yield "an event of watch", RESOURCES_PROTOCOL, encode_event(5, to_bytes(_FREE))
    yield "the end of watch", RESOURCES_PROTOCOL, encode_ok(5, b"\xa0")
    yield "an event of job_watch", JOB_PROTOCOL, encode_event(6, to_bytes(job.JobAnswer(job=_RUNNING)))
    pieces = (
        job.JobOutput(offset=1024, data=b""),
        job.JobOutput(offset=2048, data=b"tick\n", stream="stderr", dropped=1024),
    )
    for piece in pieces:
        yield "an event of job_logs", JOB_PROTOCOL, encode_event(7, to_bytes(piece))
    refused = JobError("this peer has no executor docker", code="no_executor", hint="ask another peer")
    yield "error: no_executor", JOB_PROTOCOL, encode_error(8, encode_error_body(refused))
    for error_id, error in _ERRORS:
        yield f"error: {error.code}", ALLOCATION_PROTOCOL_1_1, encode_error(error_id, encode_error_body(error))
    commit = to_bytes(allocation.CommitRequest(bids=(b"envelope",), ttl=60.0))
    yield "request: commit, with a token", ALLOCATION_PROTOCOL_1_1, encode_request(2000, add_token(commit, _TOKEN))
    charged = replace(_LEASE, accounts=("0" * 32, "1" * 32), until=1_800_000_000.0)
    answer = allocation.LeaseAnswer(lease=charged)
    yield "a lease that is charged to the grants of a token", ALLOCATION_PROTOCOL_1_1, encode_ok(2000, to_bytes(answer))
    kept = replace(_LEASE, state=LeaseState.ALLOCATED, ttl=900.0, deadline=1_700_000_600.0)
    named = replace(_LEASE, ensemble_id=_ENSEMBLE.id, node_id=_ENSEMBLE.request[0].node_id)
    answer = allocation.LeaseAnswer(lease=named)
    meaning = "a lease with the names of its ensemble and its node"
    yield meaning, ALLOCATION_PROTOCOL_1_1, encode_ok(2005, to_bytes(answer))
    notice = Notice(deadline=1_700_000_600.0, seconds=600.0, reason="maintenance")
    answer = allocation.LeaseAnswer(
        lease=replace(kept, notice=notice, longest=Limit(deadline=1_700_086_400.0, seconds=86400.0))
    )
    yield (
        "an allocation with a keep-alive, a longest time and a notice",
        ALLOCATION_PROTOCOL_1_1,
        encode_ok(2002, to_bytes(answer)),
    )
    evicted = replace(_ENDED, reason=EndReason.EVICTED, detail="maintenance")
    listed = allocation.ListAnswer(leases=(), more=False, evicted=(evicted,))
    yield "the answer to list, with an evicted lease", ALLOCATION_PROTOCOL_1_1, encode_ok(2003, to_bytes(listed))
    gone = EvictedError(f"the owner of the machine evicted {_LEASE_ID}: maintenance", lease_id=_LEASE_ID)
    yield "error: evicted", ALLOCATION_PROTOCOL_1_1, encode_error(2004, encode_error_body(gone))
    late = BidError("the bid is no longer valid; ask for a new one", code="bid_expired")
    body = encode_error_body(late, lambda: 1_700_000_000.0)
    yield "error: bid_expired, with the provider's time", ALLOCATION_PROTOCOL_1_1, encode_error(2006, body)
    exceeded = AccountError("more than the grant allows", problems=("cores: 9 would be outstanding, 8 are allowed",))
    yield "error: token_exceeded", ALLOCATION_PROTOCOL_1_1, encode_error(2001, encode_error_body(exceeded))


def _refused() -> Iterator[tuple[str, str, str, str]]:
    for meaning, data, code in _BAD_LENGTHS:
        yield meaning, RESOURCES_PROTOCOL, data, code
    for meaning, payload, code in _BAD_PAYLOADS:
        # This protocol has the operation, so that only the missing field is the error.
        protocol = ALLOCATION_PROTOCOL_1_1 if meaning == _MISSING else RESOURCES_PROTOCOL
        yield meaning, protocol, encode_frame(payload).hex(), code


def _frame(meaning: str, protocol: str, frame: bytes) -> dict[str, Any]:
    reader = FrameReader(1 << 20)
    reader.feed(frame)
    (payload,) = (one for one in reader if isinstance(one, bytes))
    return {"meaning": meaning, "protocol": protocol, "hex": frame.hex(), "message": _plain(decode_map(payload))}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


if __name__ == "__main__":
    json.dump(make_vectors(), sys.stdout, indent=1)
    sys.stdout.write("\n")
