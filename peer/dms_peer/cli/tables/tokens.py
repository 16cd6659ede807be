"""Tokens and revocations for people."""

from __future__ import annotations

from datetime import datetime

from dms_protocols.tokens.grants import GrantTerms

from ...owner.messages import RevocationsAnswer, RevokeAnswer
from ...text import printable
from ..output import comment, say
from ..token_files import MadeToken, TokenReport
from ..token_terms import effective_terms
from .layout import Column, show_table

__all__ = ["show_made_token", "show_revocations", "show_revoked", "show_token"]


def show_made_token(made: MadeToken) -> None:
    """Print the token, or the name of its file; and its id, with what it grants."""
    terms = describe_terms(effective_terms(made.grants))
    line = f"id {made.id}: {terms}; to revoke it: dms-peer token revoke {made.id}"
    if made.file is None:
        say(made.token)
        # Standard output has only the token, so that it can be piped.
        comment(line)
    else:
        say(f"{made.file}: {line}")


def show_token(report: TokenReport) -> None:
    """Print the granting peer, the blocks in their order, and the effective terms."""
    whose = "this home's own key" if report.own else "another key than this home's"
    say(f"granted by {report.grants.granted_by} ({whose}); the signatures hold")
    rows = [
        (str(number), block.id, describe_terms(block.terms), "revoked" if block.id in report.revoked else "valid")
        for number, block in enumerate(report.grants.blocks)
    ]
    columns = (Column("block"), Column("id"), Column("at most", sentences=True), Column("state"))
    show_table("what the token grants is within every block", columns, rows)
    if report.revoked:
        say("effective: nothing, because a block is revoked")
    else:
        say(f"effective: {describe_terms(report.effective)}")


def show_revoked(answer: RevokeAnswer) -> None:
    """Print how many grants were revoked."""
    again = len(answer.grants) - answer.added
    say(f"{answer.added} revoked" + (f", {again} were so already" if again else ""))


def show_revocations(answer: RevocationsAnswer) -> None:
    """Print the revocations, newest first."""
    if not answer.revocations:
        say("nothing was revoked")
        return
    rows = [(one.id, _local(one.at), printable(one.reason)) for one in answer.revocations]
    show_table(f"{answer.count} revoked", (Column("id"), Column("since"), Column("reason", sentences=True)), rows)


def describe_terms(terms: GrantTerms) -> str:
    """The terms of a block in one line."""
    parts = [terms.allowance.describe()]
    if terms.expires is not None:
        parts.append(f"until {_local(terms.expires)}")
    for what, names in (("for", terms.operations), ("by", terms.peers), ("at", terms.providers)):
        if names is not None:
            parts.append(f"{what} {', '.join(sorted(names)) or 'nobody'}")
    return ", ".join(parts)


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
