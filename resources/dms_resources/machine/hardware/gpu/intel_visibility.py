"""Which tiles of Intel's GPUs the environment lets a program use.

- `ZE_AFFINITY_MASK` has numbers of devices ("0") or of their tiles ("0.1"). With `ZE_FLAT_DEVICE_HIERARCHY` FLAT or
  COMBINED each tile is a device with a number of its own; so it is by default on GPUs with several tiles. An empty mask
  shows everything.
- `ONEAPI_DEVICE_SELECTOR` has terms such as "level_zero:0,1", "*:gpu" or "!opencl:*". Only SYCL programs read it.

Sources: the oneAPI Level Zero core programming guide; "Environment Variables" of Intel's LLVM compiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

__all__ = ["masked_tiles", "selected_tiles"]

Tile: TypeAlias = tuple[int, int]
"""The number of a device, and the number of a tile on it."""

_BACKENDS: Final = ("level_zero", "opencl")
_FLAT: Final = frozenset({"FLAT", "COMBINED"})


def masked_tiles(parts: Sequence[int], environment: Mapping[str, str]) -> frozenset[Tile] | None:
    """Return the tiles that the affinity mask shows; None if there is no mask. `parts` counts each device's tiles."""
    value = environment.get("ZE_AFFINITY_MASK", "").strip()
    if not value or value == "default":
        return None
    entries = [entry.strip() for entry in value.split(",")]
    hierarchy = environment.get("ZE_FLAT_DEVICE_HIERARCHY", "").strip().upper()
    # A tile is named as a part of its device only where devices are not flat.
    flat = hierarchy in _FLAT or (not hierarchy and not any("." in entry for entry in entries))
    every = _all_tiles(parts)
    found: set[Tile] = set()
    for entry in entries:
        device, dot, tile = entry.partition(".")
        if flat:
            found.update(every[int(entry) : int(entry) + 1] if _is_number(entry) else [])
        elif _is_number(device):
            # "0.1.2" is a part of tile 1.
            own = tile.partition(".")[0]
            found.update(one for one in every if one[0] == int(device) and (not dot or str(one[1]) == own))
    return frozenset(found)


def selected_tiles(parts: Sequence[int], environment: Mapping[str, str]) -> frozenset[Tile] | None:
    """Return the tiles that the device selector shows; None if there is no selector.

    The numbers of OpenCL count processors too, so nobody can know here which GPU they name: such a term shows nothing,
    and one that hides a number hides all devices of OpenCL.
    """
    value = environment.get("ONEAPI_DEVICE_SELECTOR", "").strip().casefold()
    if not value:
        return None
    terms = [term.strip() for term in value.split(";") if term.strip()]
    shown = [term for term in terms if not term.startswith("!")] or ["*:*"]
    hidden = [term[1:] for term in terms if term.startswith("!")]
    left: set[Tile] = set()
    for backend in _BACKENDS:
        every = _all_tiles(parts)
        left |= set(_matches(shown, backend, every)) - set(_matches(hidden, backend, every, hides=True))
    return frozenset(left)


def _matches(terms: Iterable[str], backend: str, every: Sequence[Tile], *, hides: bool = False) -> Iterator[Tile]:
    for term in terms:
        name, _, devices = term.partition(":")
        if name.strip() not in ("*", backend):
            continue
        for device in devices.split(","):
            yield from _named(device.strip(), backend, every, hides=hides)


def _named(device: str, backend: str, every: Sequence[Tile], *, hides: bool) -> Iterator[Tile]:
    if device in ("*", "gpu", "*.*"):
        yield from every
        return
    number, dot, tile = device.partition(".")
    if not _is_number(number):
        return
    if backend == "opencl":
        yield from every if hides else ()
        return
    yield from (one for one in every if one[0] == int(number) and (not dot or tile in ("*", str(one[1]))))


def _all_tiles(parts: Sequence[int]) -> list[Tile]:
    return [(device, tile) for device, count in enumerate(parts) for tile in range(count)]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 9
