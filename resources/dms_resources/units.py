"""Amounts as people and the wire write them, stored as exact integers.

Cores are integer millicores, sizes are integer bytes, clocks are integer hertz: floats are never added up.
"""

from __future__ import annotations

import functools
import re
from decimal import Context, Decimal
from typing import Any, Final

from .encoding.go_structs import nearest_thousandth
from .errors import AmountError

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "TIB",
    "Cores",
    "decode_value",
    "encode_value",
    "format_cores",
    "format_duration",
    "format_size",
    "parse_duration",
    "parse_size",
]

KIB: Final = 2**10
"""1 KiB, 2^10 bytes."""
MIB: Final = 2**20
"""1 MiB, 2^20 bytes."""
GIB: Final = 2**30
"""1 GiB, 2^30 bytes."""
TIB: Final = 2**40
"""1 TiB, 2^40 bytes."""

# GB and GiB are different units here. The Go DMS reads GB as 10^9 in one place and as 2^30 in another.
_SIZE_UNITS: Final = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": TIB,
    "PiB": 2**50,
}
_FOLDED_UNITS: Final = {name.casefold(): size for name, size in _SIZE_UNITS.items()}
_DURATION_UNITS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_QUANTITY: Final = re.compile(r"\s*(\d{1,20}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)

# An amount must fit a signed 64-bit integer: SQLite's and Go's.
_MAX_AMOUNT: Final = 2**63 - 1
# More than a billion machines have. Below it every multiple of 0.001 has a different floating-point number.
_MAX_MILLICORES: Final = 10**15
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,24}(?:\.[0-9]{1,24})?(?:[eE][+-]?[0-9]{1,3})?")
# Enough digits for such a number times a thousand.
_EXACT: Final = Context(prec=64)


@functools.total_ordering
class Cores:
    """A number of CPU cores, exact to 0.001 and stored as integer millicores.

    On the wire it is the DMS's `cores`: a number such as 2 or 0.5.
    """

    __slots__ = ("millicores",)
    millicores: int

    def __init__(self, millicores: int) -> None:
        """Raise `AmountError` if `millicores` is negative or more than any machine has."""
        if not 0 <= millicores <= _MAX_MILLICORES:
            # A number of thousands of digits cannot be formatted.
            text = str(millicores) if abs(millicores) < 10**30 else "far too many"
            raise AmountError(f"{text} millicores are out of range", value=text)
        object.__setattr__(self, "millicores", millicores)

    @classmethod
    def of(cls, cores: int | float | str | Decimal) -> Cores:
        """Read a number of cores such as 2, 0.5 or "1.25".

        Raises `AmountError` if it is negative, not finite, finer than 0.001 or not a number.
        """
        if isinstance(cores, bool):
            raise AmountError("a number of cores is expected, not true or false", value=str(cores))
        if isinstance(cores, int):
            return cls(cores * 1000)
        # In this range each multiple of 0.001 has a nearest float that no other multiple has, so no text is needed.
        if isinstance(cores, float) and 0 <= cores <= _MAX_MILLICORES / 1000:
            nearest = round(cores * 1000)
            if nearest / 1000 == cores:
                return cls(nearest)
            single = nearest_thousandth(cores)
            if single is not None:
                return cls(single)
        text = str(cores).strip()
        # Decimal also reads "1_0", "inf" and the digits of every script.
        if not _NUMBER.fullmatch(text):
            raise AmountError(f"invalid number of cores {text[:40]!r} (write 2 or 0.5)", value=text[:40])
        millicores = _EXACT.multiply(Decimal(text), Decimal(1000))
        if millicores != millicores.to_integral_value():
            raise AmountError(f"{text} cores are not a multiple of 0.001", value=text)
        if not 0 <= millicores <= _MAX_MILLICORES:
            raise AmountError(f"{text} cores are out of range", value=text)
        return cls(int(millicores))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Cores are immutable")

    def __add__(self, other: Cores) -> Cores:
        return Cores(self.millicores + other.millicores)

    def __sub__(self, other: Cores) -> Cores:
        return Cores(self.millicores - other.millicores)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cores) and self.millicores == other.millicores

    def __lt__(self, other: Cores) -> bool:
        return self.millicores < other.millicores

    def __hash__(self) -> int:
        return hash(self.millicores)

    def __bool__(self) -> bool:
        return self.millicores != 0

    def __repr__(self) -> str:
        return f"Cores({self.millicores})"

    def __str__(self) -> str:
        return f"{Decimal(self.millicores) / 1000:f}"

    def to_number(self) -> int | float:
        """The DMS's `cores`: an integer if it is whole, otherwise the nearest float (which is read back exactly)."""
        whole, rest = divmod(self.millicores, 1000)
        return self.millicores / 1000 if rest else whole


def encode_value(value: Any) -> Any:
    """The `enc_hook` of msgspec for the value types of this package."""
    if isinstance(value, Cores):
        return value.to_number()
    raise NotImplementedError(f"{type(value).__name__} has no place in a message")


def decode_value(kind: type, value: Any) -> Any:
    """The `dec_hook` of msgspec for the value types of this package.

    Raises `ValueError`, which msgspec turns into a `ValidationError` that names the field.
    """
    if kind is not Cores:
        raise NotImplementedError(f"{kind.__name__} has no place in a message")
    if isinstance(value, Cores):
        return value
    if not isinstance(value, int | float):
        raise ValueError("Expected a number of cores")
    return Cores.of(value)


def parse_size(text: str) -> int:
    """Read a size such as "4GiB", "500 MB" or "1.3TiB" as bytes, rounded down. A unit is required.

    GiB is 2^30 and GB is 10^9. Raises `AmountError` for other text, and for a fraction of a byte with the unit B.
    """
    found = _QUANTITY.fullmatch(text)
    unit = _FOLDED_UNITS.get(found[2].casefold()) if found else None
    if found is None or unit is None:
        raise AmountError(f"invalid size {text!r} (write 4GiB, 512MiB or 10GB)", value=text)
    size = Decimal(found[1]) * unit
    if not found[2] and size:
        # A number without a unit would be read as bytes: almost nothing would be offered or requested.
        meant = f"{text.strip()}GiB" if size < MIB else f"{text.strip()}B"
        raise AmountError(f"{text!r} has no unit (write {meant})", value=text)
    # "1.3GiB" is common; "0.3" or "1.5B" is a mistake.
    if unit == 1 and size != size.to_integral_value():
        raise AmountError(f"{text!r} is not a whole number of bytes", value=text)
    if size > _MAX_AMOUNT:
        raise AmountError(f"{text!r} is larger than any machine", value=text)
    return int(size)


def format_size(size: int) -> str:
    """Format bytes in binary units with at most two decimals: "4 GiB", "1.5 MiB", "17 B".

    Rounds down, so that a job can request what is shown as free.
    """
    for name, unit in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= unit:
            return f"{Decimal(size * 100 // unit) / 100:f} {name}"
    return f"{size} B"


def format_cores(cores: Cores) -> str:
    """Format a number of cores with its unit: "1 core", "0.5 cores", "2 cores"."""
    return "1 core" if cores.millicores == 1000 else f"{cores} cores"


def parse_duration(text: str) -> float:
    """Read a duration such as "90", "90s", "5m" or "2h" as seconds. Raises `AmountError`."""
    found = _QUANTITY.fullmatch(text)
    unit = _DURATION_UNITS.get(found[2].casefold()) if found else None
    if found is None or unit is None:
        raise AmountError(f"invalid duration {text!r} (write 90s, 5m or 2h)", value=text)
    return float(Decimal(found[1]) * unit)


def format_duration(seconds: float) -> str:
    """Format seconds for people: "45 s", "3 min 20 s", "2 h 5 min"."""
    whole = max(0, round(seconds))
    for unit, name, below, below_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit} {name}" + (f" {rest} {below_name}" if rest else "")
    return f"{whole} s"
