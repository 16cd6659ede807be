"""What the blocks of a token grant together, and what a further block may grant."""

from __future__ import annotations

from collections.abc import Iterable

from dms_protocols.tokens.grants import Grants, GrantTerms
from dms_resources.ledger.accounts import Allowance

from ..errors import UsageError

__all__ = ["check_narrower", "effective_terms"]


def effective_terms(grants: Grants) -> GrantTerms:
    """The terms of all blocks together: the smallest of every limit, and the names that are in every block."""
    blocks = [block.terms for block in grants.blocks]
    return GrantTerms(
        operations=_common(terms.operations for terms in blocks),
        peers=_common(terms.peers for terms in blocks),
        providers=_common(terms.providers for terms in blocks),
        expires=_least(terms.expires for terms in blocks),
        allowance=Allowance(
            **{name: _least(getattr(terms.allowance, name) for terms in blocks) for name in Allowance.__struct_fields__}
        ),
    )


def check_narrower(grants: Grants, terms: GrantTerms) -> None:
    """Raise UsageError if a further block would exceed what the token grants. The error names all such terms."""
    have, more = effective_terms(grants), []
    for option, known, asked in (
        ("--operation", have.operations, terms.operations),
        ("--peer", have.peers, terms.peers),
        ("--provider", have.providers, terms.providers),
    ):
        if known is not None and asked is not None and (beyond := sorted(asked - known)):
            more.append(f"{option} {', '.join(beyond)}")
    if have.expires is not None and terms.expires is not None and terms.expires > have.expires:
        more.append("the end of the grant")
    for name in Allowance.__struct_fields__:
        known_amount, amount = getattr(have.allowance, name), getattr(terms.allowance, name)
        if known_amount is not None and amount is not None and amount > known_amount:
            more.append(f"--{'cpu' if name == 'millicores' else name}")
    if more:
        raise UsageError(
            f"the token grants less than that: {'; '.join(more)}",
            code="usage",
            hint="see what it grants with `dms-peer token inspect`",
        )


def _common(named: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    names = [one for one in named if one is not None]
    return frozenset.intersection(*names) if names else None


def _least(bounds: Iterable[int | None]) -> int | None:
    return min((one for one in bounds if one is not None), default=None)
