from __future__ import annotations

import re
from pathlib import Path

from dms_protocols import errors
from dms_protocols.jobs.service import job_limits
from dms_protocols.rpc.limits import ServiceLimits, Shares
from dms_resources import errors as ledger_errors
from dms_resources import refusals

PAGE = (Path(__file__).parents[3] / "docs" / "wire.md").read_text()


def test_the_page_states_the_limits_that_hold() -> None:
    limits = ServiceLimits()
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", PAGE[PAGE.index("## Limits") :], re.MULTILINE))
    assert rows["request"] == f"{limits.frame_bytes >> 10} KiB"
    jobs = job_limits(limits)
    assert (
        f"accepts a request of {jobs.frame_bytes >> 10} KiB, skips one of up to {jobs.skip_bytes >> 10} KiB, "
        f"and may have {jobs.watches} running watches"
    ) in PAGE
    assert rows["answer"] == f"{limits.answer_bytes >> 20} MiB"
    assert rows["depth, values of a request"] == f"{limits.depth}, {limits.items}"
    assert rows["running slow operations"] == str(limits.operations_in_flight)
    assert rows["running watches"] == str(limits.watches)
    assert rows["answers that wait to be read"] == f"{limits.outgoing_bytes >> 10} KiB"
    assert rows["a write that stalls"] == f"{limits.write_deadline:g} s"
    assert rows["one operation"] == f"{limits.operation_deadline:g} s"
    assert rows["no whole request, no running operation"] == f"{limits.idle_deadline:g} s"


def test_the_page_states_the_shares_that_hold() -> None:
    shares = Shares()
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+? \| [^|]+?) \|", PAGE[PAGE.index("`Shares`") :], re.MULTILINE))
    for name, say in (
        ("requests per second, at once", lambda share: f"{share.requests:g}, {share.requests_burst:g}"),
        ("requests for bids per second, at once", lambda share: f"{share.bids:g}, {share.bids_burst:g}"),
        ("requests being answered and answers not read yet", lambda share: f"{share.bytes_in_flight >> 20} MiB"),
        ("running slow operations and watches", lambda share: str(share.operations)),
        ("streams", lambda share: str(share.streams)),
        ("holds, commitments and allocations", lambda share: str(share.commitments)),
    ):
        assert rows[name] == f"{say(shares.peer)} | {say(shares.total)}"
    assert f"gets {shares.assured_requests:g} requests and {shares.assured_bids:g} requests for bids" in PAGE
    assert f"{shares.assured_bytes >> 10} KiB" in PAGE


def test_the_page_knows_every_code_that_a_peer_can_be_sent() -> None:
    ours = {getattr(errors, name).default_code for name in errors.__all__} - {"connection_lost"}
    ledgers = {
        kind.code
        for kind in (
            refusals.InsufficientError, refusals.PhysicalError, refusals.DrainingError,
            refusals.NotOnboardedError, refusals.WindowError, ledger_errors.ConflictError,
            ledger_errors.NotCommittedError, ledger_errors.NotAllocatedError, ledger_errors.ExpiredError,
            ledger_errors.EndedError, ledger_errors.StaleFenceError, ledger_errors.NotHolderError,
            ledger_errors.AmountError, ledger_errors.UsageUnknownError, ledger_errors.StorageError,
            refusals.ShareError, refusals.AccountError,
        )
    }  # fmt: skip
    for code in ours | ledgers | {"not_my_bid", "not_your_bid", "bid_expired", "bad_signature", "frame_too_large"}:
        assert f"`{code}`" in PAGE
