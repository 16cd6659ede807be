"""The grants of a token, block by block: which peers may do what, how much, and until when.

A token is a chain. The owner writes its first block; each holder that passes it on may add one. All blocks apply, so
that a block can only narrow the blocks before it.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from dms_resources.ledger.accounts import Account, Allowance

__all__ = ["Grant", "GrantTerms", "Grants"]

_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,128}")
# The last second of the year 9999.
_LATEST: Final = 253402300799


class GrantTerms(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The terms of one block; None means that this block does not bound it.

    `operations` are allowed, `peers` may use it, at `providers`, until `expires` (Unix seconds). `allowance` bounds
    what may be outstanding under it at a time.
    """

    operations: frozenset[str] | None = None
    peers: frozenset[str] | None = None
    providers: frozenset[str] | None = None
    expires: int | None = None
    allowance: Allowance = Allowance()

    def __post_init__(self) -> None:
        """Raise ValueError for terms that a block cannot express."""
        for names in (self.operations, self.peers, self.providers):
            if names is not None and not all(_NAME.fullmatch(name) for name in names):
                raise ValueError("a name in a grant has 1 to 128 letters, digits and _")
        if self.expires is not None and not 0 <= self.expires <= _LATEST:
            raise ValueError("a grant ends between the years 1970 and 9999")


class Grant(Struct, frozen=True, kw_only=True):
    """One block: the id by which it is revoked and charged, and its terms."""

    id: str
    terms: GrantTerms


class Grants(Struct, frozen=True, kw_only=True):
    """The content of a token: the granting peer, and the blocks, the owner's first."""

    granted_by: str
    blocks: tuple[Grant, ...]

    @property
    def expires(self) -> int | None:
        """The earliest expiry of a block (Unix seconds); None if there is none."""
        return min((one.terms.expires for one in self.blocks if one.terms.expires is not None), default=None)

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The accounts to which a lease under this token is charged."""
        return tuple(Account(id=one.id, allowance=one.terms.allowance) for one in self.blocks)
