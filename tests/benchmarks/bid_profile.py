"""The costs of a bid at the provider: each step alone, in one process, without network.

    python tests/benchmarks/bid_profile.py [--loops 7000] [--docs docs/benchmarks.md]

The results are the best of several turns, because other load on the machine only adds to them. Some steps are a part of
others; the table says so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any, Final

import cbor2
import trio
from load import DEMAND
from provider import MACHINE, OFFER
from rich.console import Console
from rich.table import Table
from tables import markdown_table, write_page

from dms_peer import new_identity
from dms_peer.signing import EnvelopeChecker, IdentitySigner
from dms_protocols.bidding.service import bid_operations
from dms_protocols.bidding.signing import open_bid
from dms_protocols.messages.bid import (
    BID_DOMAIN,
    BID_PAYLOAD_TYPE,
    BidAnswer,
    EnsembleRequest,
    NodeRequest,
    bid_lease_id,
    request_digest,
)
from dms_protocols.rpc.operations import Caller, Operation, encode_answer
from dms_protocols.wire.cbor import decode_map
from dms_protocols.wire.conversion import from_map, sealed_bytes, to_map
from dms_protocols.wire.envelope import encode_ok
from dms_resources.ledger.accounts import Allowance, HolderShare
from dms_resources.ledger.leases import LeaseRequest
from dms_resources.manager import ResourceManager, open_manager

TURNS: Final = 100
# The nodes of one request, and the step whose time is given for each of them.
TOGETHER: Final = 8
TOGETHER_STEP: Final = f"the whole, for each of {TOGETHER} nodes in one request"
Step = Callable[[], object]


def microseconds(steps: Mapping[str, Step], loops: int) -> dict[str, float]:
    """The time of each step, in the best of several turns. The steps alternate, so that all of them meet a quiet
    moment.
    """
    took = dict.fromkeys(steps, inf)
    for _ in range(TURNS):
        for name, step in steps.items():
            begin = time.perf_counter()
            for _ in range(loops // TURNS):
                step()
            took[name] = min(took[name], 1e6 * (time.perf_counter() - begin) / (loops // TURNS))
    return took


def request_frame(nodes: int = 1) -> bytes:
    """A request for bids on this many nodes, as it arrives on the stream."""
    ensemble = EnsembleRequest(
        id="benchmark",
        nonce=time.time_ns(),
        deadline=time.time() + 600,
        request=tuple(NodeRequest(node_id=f"node-{number}", resources=DEMAND) for number in range(nodes)),
    )
    return cbor2.dumps({"id": 123_456, "op": "bid_request", "ensemble": to_map(ensemble)})


def steps(operation: Operation, signer: IdentitySigner, manager: ResourceManager) -> dict[str, Step]:
    """What a provider does for a bid, and its parts."""
    frame, frame_of_many, caller = request_frame(), request_frame(TOGETHER), Caller(new_identity().peer_id)
    message = decode_map(frame)
    request: Any = from_map(message, operation.request_type)
    answer = operation.handler(request, caller)
    assert isinstance(answer, BidAnswer)
    (envelope,) = answer.bids
    bid = open_bid(envelope, EnvelopeChecker())
    payload = sealed_bytes(bid)
    most = Allowance(leases=1_000)
    share = HolderShare(holder=most, everybody=most)
    lease = LeaseRequest(lease_id=bid.lease_id, holder=caller.peer_id, demand=DEMAND, ttl=0.0, share=share)
    key = signer.identity.key_pair().private_key

    def whole(frame: bytes) -> bytes:
        asked = from_map(decode_map(frame), operation.request_type)
        return encode_ok(123_456, encode_answer(operation.handler(asked, caller)))

    return {
        "the whole": lambda: whole(frame),
        TOGETHER_STEP: lambda: whole(frame_of_many),
        "signature (libsodium)": lambda: key.sign(payload),
        "envelope, with the signature": lambda: signer.sign(BID_DOMAIN, BID_PAYLOAD_TYPE, payload),
        "decision: would it fit": lambda: manager.would_fit_together([lease]),
        "bid as deterministic CBOR": lambda: sealed_bytes(bid),
        "digest of the request": lambda: request_digest(request.ensemble),
        "lease id": lambda: bid_lease_id(
            requester=caller.peer_id, digest=bid.request_digest, node_id="node-0", provider=signer.peer_id
        ),
        "request: decoding and checking CBOR": lambda: decode_map(frame),
        "request: into types": lambda: (
            from_map(message, operation.request_type),
            from_map(request.ensemble, EnsembleRequest),
        ),
        "answer: encoding": lambda: encode_answer(answer),
    }


async def measure(home: Path, loops: int) -> dict[str, float]:
    """Microseconds of each step."""
    async with open_manager(home / "ledger.db", MACHINE) as manager:
        await manager.update_onboarded_resources(OFFER)
        signer = IdentitySigner(new_identity())
        operation = bid_operations(manager, signer)["bid_request"]
        found = microseconds(steps(operation, signer, manager), loops)
        return found | {TOGETHER_STEP: found[TOGETHER_STEP] / TOGETHER}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, default=7_000, help="how often each step is done (default: 7000)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the table into that page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = trio.run(measure, Path(home), options.loops)
    rows = [[name, f"{took:.1f}", f"{took / found['the whole']:.0%}"] for name, took in found.items()]
    table = Table("step", "µs", "of the whole")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.docs:
        write_page(options.docs, "profile", "\n".join(markdown_table([["step", "µs", "of the whole"], *rows])) + "\n")


if __name__ == "__main__":
    main()
