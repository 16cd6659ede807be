from __future__ import annotations

import json
from hashlib import sha256
from importlib.resources import files
from typing import Any

import cbor2
import pytest
import trio
import trio.testing

from dms_protocols.jobs.tunnels import TunnelsInUse, serve_tunnel
from dms_protocols.protocol_ids import ProtocolID
from dms_protocols.rpc.operations import Caller
from dms_protocols.vectors import make_vectors
from memory_jobs import MemoryJobs

VECTORS = json.loads((files("dms_protocols") / "test_vectors.json").read_text())
REQUESTS = [frame for frame in VECTORS["frames"] if frame["meaning"].startswith("request: ")]
# Every operation but the one that begins a tunnel, which is a protocol of its own.
SERVED = [frame for frame in REQUESTS if frame["message"]["op"] != "tunnel"]


def test_the_wire_has_not_changed_by_accident() -> None:
    # If this was intended: python -m dms_protocols.vectors > protocols/dms_protocols/test_vectors.json
    assert make_vectors() == VECTORS


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["meaning"])
async def test_what_is_refused(provider: Any, serving: Any, vector: dict[str, str]) -> None:
    async with serving(operations=provider.operations) as peer:
        await peer.stream.send_all(bytes.fromhex(vector["hex"]))
        assert (await peer.receive())["error"]["code"] == vector["code"]


@pytest.mark.parametrize("vector", SERVED, ids=lambda vector: vector["meaning"])
async def test_every_request_is_understood(provider: Any, serving: Any, vector: dict[str, Any]) -> None:
    provider.clock.now = 1_700_000_000.0
    async with serving(operations=provider.operations) as peer:
        await peer.stream.send_all(bytes.fromhex(vector["hex"]))
        answer = await peer.receive()
    assert answer["id"] == vector["message"]["id"]
    assert answer.get("error", {}).get("code") not in ("bad_message", "bad_cbor", "unknown_operation", "internal")


def test_whole_numbers_have_one_digest_in_1_1_and_two_in_1_0() -> None:
    numbers = VECTORS["derived"]["hard_numbers"]
    for version, digest in (("1_0", "request_digest"), ("1_1", "request_digest_1_1")):
        assert sha256(bytes.fromhex(numbers[f"map_{version}_deterministic"])).hexdigest() == numbers[digest]
    assert numbers["request_digest"] != numbers["request_digest_1_1"]
    decoded = cbor2.loads(bytes.fromhex(numbers["map_1_1_deterministic"]))
    assert (type(decoded["x-negative-zero"]), decoded["x-negative-zero"]) == (int, 0)
    assert type(decoded["x-2^53-float"]) is float
    assert type(decoded["x-below-2^53-float"]) is int


@pytest.mark.parametrize("vector", [*VECTORS["frames"], *VECTORS["refused"]], ids=lambda vector: vector["meaning"])
def test_every_vector_says_its_protocol(vector: dict[str, str]) -> None:
    ProtocolID.parse(vector["protocol"])


async def test_every_operation_has_a_vector(provider: Any) -> None:
    shown = {vector["message"]["op"] for vector in REQUESTS}
    assert shown == {*provider.operations, "cancel", "tunnel"}


async def test_the_request_for_a_tunnel_is_understood(nursery: Any, raw_peer: Any) -> None:
    (vector,) = (frame for frame in REQUESTS if frame["message"]["op"] == "tunnel")
    ours, theirs = trio.testing.memory_stream_pair()
    jobs = MemoryJobs({}, nursery, lambda job: None)
    nursery.start_soon(serve_tunnel, theirs, Caller("peer"), jobs.connect, TunnelsInUse())
    await ours.send_all(bytes.fromhex(vector["hex"]))
    answer = await raw_peer(ours).receive()
    assert (answer["id"], answer["error"]["code"]) == (vector["message"]["id"], "no_job")


def test_the_digest_of_a_job_is_that_of_its_deterministic_encoding() -> None:
    derived = VECTORS["derived"]
    assert sha256(bytes.fromhex(derived["job_deterministic"])).hexdigest() == derived["job_digest"]
