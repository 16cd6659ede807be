"""Checks whether a token allows a request, with a separate code for each reason against it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final

from dms_resources.bounded_dict import BoundedDict

from ..errors import AccessError
from .biscuits import SignedToken, granter_of, open_token
from .grants import Grant, Grants

__all__ = ["TokenChecker"]

# Tokens with checked signatures, because the same token comes with many requests.
_MOST_REMEMBERED: Final = 256


class TokenChecker:
    """Checks tokens for one provider.

    `trusted` maps the peers whose grants are accepted to their Ed25519 public keys. `revoked` holds the ids of revoked
    blocks, and is read for each request. `clock` returns the Unix time in seconds.
    """

    def __init__(
        self,
        provider: str,
        trusted: Mapping[str, bytes],
        revoked: Container[str] = frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._trusted = trusted
        self._revoked = revoked
        self._clock = clock
        self._known: BoundedDict[bytes, SignedToken] = BoundedDict(_MOST_REMEMBERED)

    def check(self, raw: bytes, *, operation: str, peer: str) -> Grants:
        """The grants of the token, if this peer may use it for this operation, at this provider and time. Raises
        AccessError.
        """
        token = self._opened(raw)
        self.check_revoked(one.id for one in token.grants.blocks)
        now = self._clock()
        for block in token.grants.blocks:
            self._check_terms(block, operation, peer, now)
        if not token.allows(operation=operation, peer=peer, provider=self._provider, now=now):
            raise AccessError("the token does not allow this", code="token_not_for_this")
        return token.grants

    def check_revoked(self, accounts: Iterable[str]) -> None:
        """Raise AccessError `token_revoked` if one of these grants was revoked."""
        for account in accounts:
            if account in self._revoked:
                raise AccessError(f"the grant {account} was revoked", code="token_revoked")

    def _check_terms(self, block: Grant, operation: str, peer: str, now: float) -> None:
        terms = block.terms
        if terms.expires is not None and now > terms.expires:
            raise AccessError(f"the token ended {now - terms.expires:.0f} s ago", code="token_expired")
        if terms.peers is not None and peer not in terms.peers:
            raise AccessError("the token is for other peers", code="token_not_yours")
        if terms.providers is not None and self._provider not in terms.providers:
            raise AccessError("the token is for other providers", code="token_not_here")
        if terms.operations is not None and operation not in terms.operations:
            allowed = ", ".join(sorted(terms.operations))
            raise AccessError(f"the token is not for {operation}, but for {allowed}"[:400], code="token_not_for_this")

    def _opened(self, raw: bytes) -> SignedToken:
        digest = hashlib.sha256(raw).digest()
        token = self._known.recent(digest)
        if token is None:
            granter = granter_of(raw)
            key = self._trusted.get(granter)
            if key is None:
                raise AccessError(f"grants of {granter} do not count here", code="token_invalid")
            token = self._known[digest] = open_token(raw, key)
        return token
