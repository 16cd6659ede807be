"""Valid tokens, for the fuzzing to change."""

from __future__ import annotations

from typing import Final

from dms_host.keys.identity import new_identity, public_key_of
from dms_protocols.tokens.biscuits import attenuate_token, create_token
from dms_protocols.tokens.checks import TokenChecker
from dms_protocols.tokens.grants import Allowance, GrantTerms

__all__ = ["CHECKER", "GRANTER", "TOKENS"]

_IDENTITY: Final = new_identity(bytes(32))
_KEY: Final = public_key_of(_IDENTITY.peer_id) or b""
GRANTER: Final = _IDENTITY.peer_id

_WHOLE: Final = create_token(
    _IDENTITY.seed,
    GRANTER,
    GrantTerms(
        expires=2_000_000_000, operations=frozenset({"commit", "bid_request"}), allowance=Allowance(millicores=8000)
    ),
)
TOKENS: Final = (_WHOLE, attenuate_token(_WHOLE, _KEY, GrantTerms(peers=frozenset({GRANTER}))))
CHECKER: Final = TokenChecker(GRANTER, {GRANTER: _KEY}, clock=lambda: 1_800_000_000.0)
