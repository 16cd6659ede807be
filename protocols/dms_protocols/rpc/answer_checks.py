"""Compares answers with the request, and with the bid if there is one: a provider may have a fault, or lie.

Every check raises AnswerError `bad_answer`, which names the field that does not match. A fact that only the provider
knows (what is free, what its machine uses) cannot be checked. A field that repeats a part of the request has to match
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from dms_resources.components import Resources
from dms_resources.demands import Demand
from dms_resources.ledger.leases import EndedLease, Lease, LeaseState

from ..bidding.checks import Bids
from ..errors import ProtocolError
from ..messages.allocation import ListAnswer
from ..messages.bid import Bid, EnsembleRequest, OfferAnswer, count_ports
from ..messages.job import JobOutput, JobStatus

__all__ = [
    "AnswerError",
    "check_allocated",
    "check_bid",
    "check_bids",
    "check_ended",
    "check_job",
    "check_leases",
    "check_offers",
    "check_output",
    "check_own_leases",
    "check_renewed",
    "covers",
]

# The seconds by which the clocks of two peers may differ. It is used for the provider's times in answers.
_CLOCK_SKEW: Final = 3600.0
# The shortest time between renewals, in seconds, that a provider may require.
_LEAST_TTL: Final = 0.1
# A bid is valid for at most a day (docs/wire.md).
_LONGEST_VALIDITY: Final = 86400.0


class AnswerError(ProtocolError):
    """An answer does not match its request. It is unknown whether the operation took place."""

    default_code = "bad_answer"


def covers(resources: Resources, demand: Demand) -> bool:
    """Whether the resources cover the demand, GPU by GPU in the order of the demand."""
    gpus = zip(resources.gpus, demand.gpus, strict=False)
    return (
        resources.cpu.cores >= demand.cpu.cores
        and resources.ram.size >= demand.ram.size
        and resources.disk.size >= demand.disk.size
        and len(resources.gpus) >= len(demand.gpus)
        and all(gpu.vram >= asked.vram for gpu, asked in gpus)
    )


def check_bid(bid: Bid, ensemble: EnsembleRequest, *, requester: str, provider: str, now: float) -> None:
    """Compare a bid with the request that it answers. `now` is the requester's Unix time in seconds."""
    node = next((node for node in ensemble.request if node.node_id == bid.node_id), None)
    if node is None:
        raise AnswerError(f"the answer has a bid on a node that was not asked for: {bid.node_id[:64]!r}")
    _same("a bid", "provider", bid.provider, provider)
    _same("a bid", "requester", bid.requester, requester)
    _same("a bid", "nonce", bid.nonce, ensemble.nonce)
    _same("a bid", "ensemble_id", bid.ensemble_id, ensemble.id)
    _same("a bid", "demand", bid.demand, node.resources)
    _same("a bid", "public_ports", bid.public_ports, node.public_ports)
    if not covers(bid.resources, node.resources):
        raise AnswerError("the answer is wrong: the resources of a bid are less than its demand")
    if not now - _CLOCK_SKEW <= bid.valid_until <= now + _LONGEST_VALIDITY + _CLOCK_SKEW:
        raise AnswerError(
            f"the answer is wrong: valid_until of a bid is {_apart(bid.valid_until - now)}",
            hint="compare the clocks of both machines",
        )


def check_bids(bids: Bids, ensemble: EnsembleRequest, *, requester: str, provider: str, now: float) -> None:
    """Compare signed bids and refusals with the request. `now` is the requester's Unix time in seconds."""
    for one in bids.bids:
        check_bid(one.bid, ensemble, requester=requester, provider=provider, now=now)


def check_offers(answer: OfferAnswer, ensemble: EnsembleRequest, *, requester: str, provider: str, now: float) -> None:
    """Compare the answer to a dry run with the request. `now` is the requester's Unix time in seconds."""
    asked = {node.node_id for node in ensemble.request}
    for bid in answer.offers:
        check_bid(bid, ensemble, requester=requester, provider=provider, now=now)
    named = [bid.node_id for bid in answer.offers] + [refusal.node_id for refusal in answer.refusals]
    if len(set(named)) != len(named) or not asked.issuperset(named):
        raise AnswerError("the answer is wrong: it names a node twice, or one that was not asked for")


def check_leases(leases: Sequence[Lease], bids: Sequence[Bid], *, ttl: float, asked_at: float) -> None:
    """Compare the answer to a commitment with the bids, in their order. `asked_at` is in Unix seconds."""
    if len(leases) != len(bids):
        raise AnswerError(f"the answer is wrong: {len(leases)} leases for {len(bids)} bids")
    for lease, bid in zip(leases, bids, strict=True):
        _same("a lease", "lease_id", lease.lease_id, bid.lease_id)
        _same("a lease", "holder", lease.holder, bid.requester)
        _same("a lease", "price", lease.price, bid.price)
        _same("a lease", "asked_ports", lease.asked_ports, bid.public_ports)
        if not covers(lease.resources, bid.demand):
            raise AnswerError("the answer is wrong: the resources of a lease are less than the bid's demand")
        if len(lease.ports) < count_ports(bid.public_ports) or not {*bid.public_ports.static}.issubset(lease.ports):
            raise AnswerError("the answer is wrong: the ports of a lease are not those of the bid")
        if lease.state is LeaseState.HELD:
            raise AnswerError("the answer is wrong: the state of a lease is held, not committed")
        if lease.state is LeaseState.COMMITTED:
            _check_deadline(lease, asked_at, ttl)


def check_renewed(lease: Lease, lease_id: str, *, holder: str, fence: int | None, before: Lease | None = None) -> None:
    """Compare the answer to a renewal or an allocation with the request, and with the lease `before` it."""
    _same("the lease", "lease_id", lease.lease_id, lease_id)
    _same("the lease", "holder", lease.holder, holder)
    if fence is not None:
        _same("the lease", "fence", lease.fence, fence)
    if not covers(lease.resources, lease.demand):
        raise AnswerError("the answer is wrong: the resources of the lease are less than its demand")
    if lease.state is LeaseState.HELD:
        raise AnswerError("the answer is wrong: the state of the lease is held")
    if before is not None:
        for field in ("demand", "asked_ports", "resources", "ports", "price"):
            _same("the lease", field, getattr(lease, field), getattr(before, field))


def check_allocated(
    lease: Lease, lease_id: str, *, holder: str, fence: int | None, before: Lease | None = None
) -> None:
    """Compare the answer to an allocation with the request, and with the commitment `before` it."""
    check_renewed(lease, lease_id, holder=holder, fence=fence, before=before)
    if lease.state is not LeaseState.ALLOCATED:
        raise AnswerError(f"the answer is wrong: the state of the lease is {lease.state.value}, not allocated")
    # With a keep-alive of about 0 the requester would renew without a pause.
    if lease.ttl and not _LEAST_TTL <= lease.ttl < math.inf:
        raise AnswerError(f"the answer is wrong: an allocation is to be renewed every {lease.ttl:g} s")


def check_ended(ended: EndedLease, lease_id: str, *, holder: str, fence: int | None) -> None:
    """Compare the answer to a release with the request."""
    _same("the lease", "lease_id", ended.lease_id, lease_id)
    _same("the lease", "holder", ended.holder, holder)
    if fence is not None:
        _same("the lease", "fence", ended.fence, fence)


def check_own_leases(page: ListAnswer, *, holder: str, after: str, limit: int) -> None:
    """Compare a page of leases with the request: they are the holder's own, ordered, after `after`, and at most
    `limit`.
    """
    ids = [lease.lease_id for lease in page.leases]
    if len(ids) > limit or ids != sorted(set(ids)) or any(lease_id <= after for lease_id in ids):
        raise AnswerError("the answer is wrong: the leases of a list are not in order, or too many")
    if page.more and not ids:
        raise AnswerError("the answer is wrong: a list promises more and has none")
    for lease in page.leases:
        _same("a lease", "holder", lease.holder, holder)


def check_job(status: JobStatus, lease_id: str, *, fence: int | None = None, digest: bytes | None = None) -> None:
    """Compare the state of a job with the request, and with the `fence` and `digest` of its start where they are known.

    A job has an exit when it has exited, and not before.
    """
    _same("the job", "lease_id", status.lease_id, lease_id)
    if fence is not None:
        _same("the job", "fence", status.fence, fence)
    if digest is not None:
        _same("the job", "digest", status.digest.hex(), digest.hex())
    if (status.state == "exited") != (status.exit is not None):
        raise AnswerError(f"the answer is wrong: the job is {status.state}, and its exit is {status.exit}")
    if status.dropped > status.output:
        raise AnswerError("the answer is wrong: more output is dropped than the job wrote")


def check_output(piece: JobOutput, position: int) -> int:
    """Compare a piece of output with the position up to which the output was read; returns where it is read on.

    Output comes in order, and what was dropped before a piece is counted in it.
    """
    if piece.offset - piece.dropped != position:
        raise AnswerError(
            f"the answer is wrong: output from byte {piece.offset} on, after {piece.dropped} that were dropped, "
            f"does not continue at byte {position}"
        )
    return piece.offset + len(piece.data)


def _check_deadline(lease: Lease, asked_at: float, ttl: float) -> None:
    deadline = math.nan if lease.deadline is None else lease.deadline
    if not asked_at - _CLOCK_SKEW <= deadline <= asked_at + ttl + _CLOCK_SKEW:
        raise AnswerError(
            f"the answer is wrong: the deadline of a lease is {_apart(deadline - asked_at)}, asked for {ttl:g} s",
            hint="compare the clocks of both machines",
        )


def _apart(seconds: float) -> str:
    return f"{seconds:.0f} s from this machine's time" if math.isfinite(seconds) else "no time"


def _same(what: str, field: str, said: object, asked: object) -> None:
    if said != asked:
        raise AnswerError(f"the answer is wrong: {field} of {what} is {str(said)[:96]!r}, not {str(asked)[:96]!r}")
