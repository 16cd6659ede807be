"""What is outstanding, and how much of it is allowed: for each holder, for all holders, and for each grant.

A grant ("up to 8 cores") is an account. Each lease that is made under it is charged to it until it ends, and also to
the grants from which it was derived. Two parts of a grant together are not worth more than the grant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Final

from msgspec import Struct

from ..components import Amount, Resources
from ..units import Cores, format_size

__all__ = ["MOST_ACCOUNTS", "NOTHING", "Account", "Allowance", "HolderShare", "Outstanding", "Sums"]

MOST_ACCOUNTS = 64
"""The largest number of accounts to which one lease may be charged."""


class Allowance(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The most that may be outstanding at a time: millicores, bytes of `ram`, `disk` and `vram` (on all GPUs together),
    the number of `gpus` and of `leases`. None: no limit here.
    """

    millicores: Amount | None = None
    ram: Amount | None = None
    disk: Amount | None = None
    gpus: Amount | None = None
    vram: Amount | None = None
    leases: Amount | None = None

    def exceeded_by(self, outstanding: Outstanding) -> tuple[str, ...]:
        """A clause for each dimension in which `outstanding` would exceed the allowance."""
        clauses = [
            f"{name}: {show(amount)} would be outstanding, {show(most)} are allowed"
            for (name, show), amount, most in zip(_DIMENSIONS, outstanding, self._bounds(), strict=True)
            if most is not None and amount > most
        ]
        return tuple(clauses)

    def describe(self) -> str:
        """One line for people: "8 cores, 1 GPU"; "everything" if there is no limit."""
        parts = [
            f"{show(most)} {name.removesuffix('s') if name in _COUNTED and show(most) == '1' else name}"
            for (name, show), most in zip(_DIMENSIONS, self._bounds(), strict=True)
            if most is not None
        ]
        return ", ".join(parts) or "everything"

    def _bounds(self) -> tuple[int | None, ...]:
        return self.millicores, self.ram, self.disk, self.gpus, self.vram, self.leases


_DIMENSIONS: Final[tuple[tuple[str, Callable[[int], str]], ...]] = (
    ("cores", lambda amount: str(Cores(amount))),
    ("RAM", format_size),
    ("disk", format_size),
    ("GPUs", str),
    ("VRAM", format_size),
    ("leases", str),
)


_COUNTED: Final = ("cores", "GPUs", "leases")


class Account(Struct, frozen=True, kw_only=True):
    """An account to which leases are charged, and the most that may be charged to it at a time.

    If the account is not a grant but a part of the owner's offer, `shared` names those who share it, for people.
    """

    id: str
    allowance: Allowance
    shared: str = ""


class HolderShare(Struct, frozen=True, kw_only=True):
    """How much the holder of a requested lease, and all holders together, may have outstanding with it, and the longest
    time to live in seconds.
    """

    holder: Allowance = Allowance()
    everybody: Allowance = Allowance()
    longest_ttl: float = inf


class Outstanding(Struct, frozen=True):
    """Sums over leases: millicores, bytes, numbers."""

    millicores: int = 0
    ram: int = 0
    disk: int = 0
    gpus: int = 0
    vram: int = 0
    leases: int = 0

    def __iter__(self) -> Iterator[int]:
        return iter((self.millicores, self.ram, self.disk, self.gpus, self.vram, self.leases))

    def plus(self, resources: Resources, sign: int) -> Outstanding:
        """The sums with one lease of these resources more (1) or less (-1). Raises `ValueError` below zero."""
        vram = 0
        for gpu in resources.gpus:
            vram += gpu.vram
        sums = Outstanding(
            self.millicores + sign * resources.cpu.cores.millicores,
            self.ram + sign * resources.ram.size,
            self.disk + sign * resources.disk.size,
            self.gpus + sign * len(resources.gpus),
            self.vram + sign * vram,
            self.leases + sign,
        )
        if sign < 0 and min(sums) < 0:
            raise ValueError("an account gives back more than was charged to it")
        return sums


NOTHING = Outstanding()


class Sums:
    """What is outstanding: `everything`, by holder and by account. Holders and accounts with nothing are left out."""

    def __init__(self) -> None:
        self.everything = NOTHING
        self.by_holder: dict[str, Outstanding] = {}
        self.by_account: dict[str, Outstanding] = {}

    @classmethod
    def of(cls, leases: Iterable[tuple[str, Sequence[str], Resources]]) -> Sums:
        """The sums of these leases, each with its holder, accounts and resources."""
        sums = cls()
        for holder, accounts, resources in leases:
            sums.count(holder, accounts, resources, 1)
        return sums

    def copy(self) -> Sums:
        """A copy of the sums, which does not change with the original."""
        sums = Sums()
        sums.everything, sums.by_holder, sums.by_account = self.everything, dict(self.by_holder), dict(self.by_account)
        return sums

    def count(self, holder: str, accounts: Sequence[str], resources: Resources, sign: int) -> None:
        """Add a lease (1) or remove it (-1). Raises `ValueError` below zero, which is a defect."""
        self.everything = self.everything.plus(resources, sign)
        _charge(self.by_holder, holder, resources, sign)
        for account in accounts:
            _charge(self.by_account, account, resources, sign)

    def differences(self, other: Sums) -> Iterator[str]:
        """A clause for each difference."""
        if self.everything != other.everything:
            yield f"everything: {tuple(self.everything)} and {tuple(other.everything)}"
        for kind, mine, theirs in (
            ("holder", self.by_holder, other.by_holder),
            ("account", self.by_account, other.by_account),
        ):
            for key in mine.keys() | theirs.keys():
                one, another = mine.get(key, NOTHING), theirs.get(key, NOTHING)
                if one != another:
                    yield f"{kind} {key}: {tuple(one)} and {tuple(another)}"


def _charge(sums: dict[str, Outstanding], key: str, resources: Resources, sign: int) -> None:
    outstanding = sums.get(key, NOTHING).plus(resources, sign)
    if any(outstanding):
        sums[key] = outstanding
    else:
        del sums[key]
