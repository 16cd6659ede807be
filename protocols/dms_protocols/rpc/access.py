"""Who may do what: each operation is for anyone, for the peers on a list, or for the holders of a token.

The rules are checked once, before the handler of an operation runs. Some rules hold in any case: only the peer that a
bid was made for may commit it, only its holder may change a lease, and administration is only on the local socket.
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


# Operations that what a caller has outstanding counts for.
_CHARGED = frozenset({"bid_request", "commit"})


class AccessRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may request an operation: `anyone`, or one of `peers`, or the holder of a `token`; otherwise no peer.

    With `anyone`, the `peers` and the holders of a token may have more outstanding than strangers may.
    """

    anyone: bool = False
    peers: frozenset[str] = frozenset()
    token: bool = False


ANYONE = AccessRule(anyone=True)
NOBODY = AccessRule()


class AccessRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The owner's rules: `operations` by name, `others` for those that are not named, and the peers whose grants count
    besides this peer's own (`trusted`).

    An operation that is not named takes the rule of the fact that it tells (dms_protocols.rpc.facts).
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
        """Whether anyone may request an operation, so that what it tells may be published."""
        return self.rule(operation).anyone

    def may_learn(self, operation: str, caller: Caller) -> bool:
        """Whether a caller that was admitted to another operation may also learn what this one tells."""
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
        """The rules that are applied now, for those who publish what the rules are about."""
        self._tokens = tokens
        # Filled with the operations of this peer, of which there are a few.
        self._public: dict[str, bool] = {}

    @property
    def rules(self) -> AccessRules:
        """The rules that are applied now."""
        return self.current.rules

    def replace_rules(self, rules: AccessRules) -> None:
        """Applies other rules to every request from now on. The peers whose grants count stay the same."""
        self.current.rules = rules
        self._public.clear()

    def admit(self, operation: str, caller: Caller, message: Mapping[str, Any]) -> Caller:
        """The caller, with the grants of its token where it needs one.

        Raises AccessError, or MessageError for a token that is not a byte string.
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
        """A caller of an operation that is for anyone, as the rule for commitments knows it."""
        rule = self.rules.rule("commit")
        if caller.peer_id in rule.peers or not rule.anyone:
            # Where strangers may not commit, they take nothing from others by asking.
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
