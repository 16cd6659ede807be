"""Resource maps as a Go program writes the DMS's own structs.

Their clocks are `float64`, and so are sizes in some versions; cores are `float32`; slices, maps and pointers that are
nil are null. A Go encoder writes all of them as they are, also those that the program never set.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["nearest_thousandth", "plain_resources"]

_CLOCKS: Final = frozenset({"clock_speed", "base_clock_speed"})
_AMOUNTS: Final = frozenset(
    {"size", "vram", "index", "threads", "physical_cores", "cache_size", "read_speed", "write_speed"}
)
_PARTS: Final = frozenset({"cpu", "ram", "disk"})
# The largest float below 2^63.
_LARGEST: Final = float(2**63 - 1024)
# Below this depth no message has a resource map.
_DEPTH: Final = 32
_SINGLE: Final = struct.Struct("<f")


def nearest_thousandth(cores: float) -> int | None:
    """Return the thousandths that a number of cores means if it was a `float32`; None if it cannot have been one.

    0.1 as a `float32` is 0.10000000149011612. 0.30000000000000004, which is 0.1 + 0.2, is no `float32`.
    """
    try:
        nearest = round(cores * 1000)
        single: float = _SINGLE.unpack(_SINGLE.pack(nearest / 1000))[0]
    except OverflowError:
        return None
    return nearest if single == cores else None


def plain_resources(value: Any, depth: int = _DEPTH) -> Any:
    """Return a copy of decoded maps with integers for whole amounts in their resources, and without null entries.

    Clocks are rounded to a hertz. An amount that is not whole stays as it is. So does what lies deeper than `depth`.
    """
    if isinstance(value, Mapping) and depth:
        return {key: _plain_part(key, part, depth - 1) for key, part in value.items() if part is not None}
    if isinstance(value, list) and depth:
        return [plain_resources(item, depth - 1) for item in value]
    return value


def _plain_part(key: object, value: Any, depth: int) -> Any:
    if key in _PARTS and isinstance(value, Mapping):
        return _plain_amounts(value)
    if key == "gpus" and isinstance(value, list):
        return [_plain_amounts(gpu) if isinstance(gpu, Mapping) else gpu for gpu in value]
    return plain_resources(value, depth)


def _plain_amounts(part: Mapping[Any, Any]) -> dict[Any, Any]:
    return {name: _plain_amount(name, amount) for name, amount in part.items() if amount is not None}


def _plain_amount(name: object, amount: Any) -> Any:
    if type(amount) is not float or not math.isfinite(amount) or not 0 <= amount <= _LARGEST:
        return amount
    if name in _CLOCKS:
        return round(amount)
    return int(amount) if name in _AMOUNTS and amount.is_integer() else amount
