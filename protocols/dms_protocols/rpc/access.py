"""Who may do what: for each operation anyone, the peers on a list, or who holds a token.

The rules are asked once, before an operation's handler runs. They come on top of what holds in any case: a bid is taken
by the peer that it was made for, a lease is changed by its holder, and administration is only on this machine's socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from msgspec import Struct

from ..errors import AccessError, MessageError
from ..tokens.checks import TokenChecker
from .operations import Caller

__all__ = ["ANYONE", "Access", "AccessRule", "AccessRules"]


class AccessRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may ask for an operation: `anyone`, or one of `peers`, or who shows a `token`; else nobody."""

    anyone: bool = False
    peers: frozenset[str] = frozenset()
    token: bool = False


ANYONE = AccessRule(anyone=True)


class AccessRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The owner's rules: `operations` by name, `others` for those that are not named, and the peers whose grants count
    besides this peer's own (`trusted`)."""

    operations: Mapping[str, AccessRule] = {}
    others: AccessRule = ANYONE
    trusted: tuple[str, ...] = ()

    def rule(self, operation: str) -> AccessRule:
        """The rule of an operation."""
        return self.operations.get(operation, self.others)

    def admits(self, operation: str, peer_id: str) -> bool:
        """Whether this peer may ask for an operation without a token."""
        rule = self.rule(operation)
        return rule.anyone or peer_id in rule.peers

    @property
    def open(self) -> bool:
        """Whether anyone may ask for everything."""
        return all(rule.anyone for rule in (self.others, *self.operations.values()))


class Access:
    """Applies the rules to requests; a token is looked at only where nothing else lets its bearer in."""

    def __init__(self, rules: AccessRules, tokens: TokenChecker) -> None:
        self._rules = rules
        self._open = rules.open
        self._tokens = tokens

    @property
    def rules(self) -> AccessRules:
        """The rules that are applied now."""
        return self._rules

    def replace_rules(self, rules: AccessRules) -> None:
        """Applies other rules to every request from now on. The peers whose grants count stay the same."""
        self._rules, self._open = rules, rules.open

    def admit(self, operation: str, caller: Caller, message: Mapping[str, Any]) -> Caller:
        """The caller, with what its token grants where it needs one. Raises AccessError, or MessageError for a token
        that is no bytes."""
        if self._open or caller.local or self._rules.admits(operation, caller.peer_id):
            return caller
        rule = self._rules.rule(operation)
        if not rule.token:
            who = "some peers, not for you" if rule.peers else "nobody"
            raise AccessError(f"{operation} is for {who}")
        token = message.get("token")
        if token is None:
            raise AccessError(f"{operation} needs a token", code="token_required")
        if type(token) is not bytes:
            raise MessageError("token: bytes are expected", path="token")
        grants = self._tokens.check(token, operation=operation, peer=caller.peer_id)
        return replace(caller, grants=grants)
