"""Access rules: each operation is for anyone, for the listed peers, or for the holders of a token.

The rules are checked once, before the handler of an operation runs. Some rules always apply: a bid can be committed
only by the peer that it was made for, a lease can be changed only by its holder, and administration is possible only on
the local socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from msgspec import Struct

from ..errors import AccessError, MessageError
from ..tokens.checks import TokenChecker
from .facts import CLOSED_TO_STRANGERS, FACT_OF
from .operations import Caller

__all__ = ["ANYONE", "NOBODY", "Access", "AccessRule", "AccessRules", "CurrentRules"]


# The operations to which the shares of outstanding capacity apply.
_CHARGED = frozenset({"bid_request", "commit"})


class AccessRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The peers that may request an operation: `anyone`, or those in `peers`, or the holders of a `token`; otherwise
    none.

    With `anyone`, the `peers` and the holders of a token may have more outstanding than strangers.
    """

    anyone: bool = False
    peers: frozenset[str] = frozenset()
    token: bool = False


ANYONE = AccessRule(anyone=True)
NOBODY = AccessRule()


class AccessRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The owner's rules: `operations` by name, `others` for operations that are not named, and the peers whose grants
    are accepted in addition to this peer's own (`trusted`).

    An operation that is not named has the rule of the fact that it discloses (dms_protocols.rpc.facts).
    """

    operations: Mapping[str, AccessRule] = {}
    others: AccessRule = ANYONE
    trusted: tuple[str, ...] = ()

    def rule(self, operation: str) -> AccessRule:
        """The rule of an operation."""
        named = self.operations.get(operation) or self.operations.get(FACT_OF.get(operation, operation))
        if named is not None:
            return named
        return NOBODY if operation in CLOSED_TO_STRANGERS and self.others.anyone else self.others

    def admits(self, operation: str, peer_id: str) -> bool:
        """Whether this peer may request an operation without a token."""
        rule = self.rule(operation)
        return rule.anyone or peer_id in rule.peers

    def is_public(self, operation: str) -> bool:
        """Whether anyone may request an operation, so that the fact it discloses may also be published."""
        return self.rule(operation).anyone

    def may_learn(self, operation: str, caller: Caller) -> bool:
        """Whether a caller that was admitted to another operation may also learn the fact that this one discloses."""
        if caller.local or self.admits(operation, caller.peer_id):
            return True
        if caller.grants is None or not self.rule(operation).token:
            return False
        allowed = (block.terms.operations for block in caller.grants.blocks)
        return all(operations is None or operation in operations for operations in allowed)


class CurrentRules:
    """Rules that the owner may replace while the peer runs: assign `rules`."""

    __slots__ = ("rules",)

    def __init__(self, rules: AccessRules | None = None) -> None:
        self.rules = rules or AccessRules()


class Access:
    """Applies the rules to requests. A token is checked only where no other rule admits the caller."""

    def __init__(self, rules: AccessRules, tokens: TokenChecker) -> None:
        self.current = CurrentRules(rules)
        """The rules in force. Publishers of the same facts read them."""
        self._tokens = tokens
        # It holds the few operations of this peer, so that it stays small.
        self._public: dict[str, bool] = {}

    @property
    def rules(self) -> AccessRules:
        """The rules in force."""
        return self.current.rules

    def replace_rules(self, rules: AccessRules) -> None:
        """Apply other rules to every request from now on. The peers whose grants are accepted stay the same."""
        self.current.rules = rules
        self._public.clear()

    def admit(self, operation: str, caller: Caller, message: Mapping[str, Any]) -> Caller:
        """The caller, with the grants of its token if it needs one.

        Raises AccessError, or MessageError if the token is not a byte string.
        """
        public = self._public.get(operation)
        if public is None:
            public = self._public[operation] = self.rules.is_public(operation)
        if public:
            return self._recognize(operation, caller, message) if operation in _CHARGED else caller
        if caller.local or self.rules.admits(operation, caller.peer_id):
            return replace(caller, known=True) if operation in _CHARGED else caller
        rule = self.rules.rule(operation)
        if not rule.token:
            who = "some peers, not for you" if rule.peers else "nobody"
            raise AccessError(f"{operation} is for {who}")
        if message.get("token") is None:
            raise AccessError(f"{operation} needs a token", code="token_required")
        return self._with_grants(operation, caller, message)

    def _recognize(self, operation: str, caller: Caller, message: Mapping[str, Any]) -> Caller:
        """The caller of an operation that is for anyone, marked as known if the rule for commitments lists it."""
        rule = self.rules.rule("commit")
        if caller.peer_id in rule.peers or not rule.anyone:
            # If strangers may not commit, their requests for bids take nothing from others.
            return replace(caller, known=True)
        if rule.token and message.get("token") is not None:
            return self._with_grants(operation, caller, message)
        return caller

    def _with_grants(self, operation: str, caller: Caller, message: Mapping[str, Any]) -> Caller:
        token = message["token"]
        if type(token) is not bytes:
            raise MessageError("token: bytes are expected", path="token")
        grants = self._tokens.check(token, operation=operation, peer=caller.peer_id)
        return replace(caller, grants=grants)
