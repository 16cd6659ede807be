"""Makes hostile bytes from valid ones. The same seed gives the same bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

__all__ = ["mutated"]

# Values at which lengths and headers often go wrong.
_EDGES = (b"\x00", b"\x7f", b"\x80", b"\xff", b"\x1b", b"\x5f", b"\x9f", b"\xbf", b"\xdb", b"\xfb" + b"\xff" * 8)
_MOST_BYTES = 65536


def mutated(seeds: Sequence[bytes], chance: random.Random) -> Iterator[bytes]:
    """Endless variations of the seeds: flipped, truncated, doubled, spliced, filled with edge values."""
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
            _change(data, seeds, chance)
        yield bytes(data[:_MOST_BYTES])


def _change(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    place = chance.randrange(len(data) + 1)
    kind = chance.randrange(7)
    if kind == 0 and data:
        data[place % len(data)] ^= 1 << chance.randrange(8)
    elif kind == 1 and data:
        data[place % len(data)] = chance.randrange(256)
    elif kind == 2:
        del data[place : place + chance.randrange(1, 16)]
    elif kind == 3:
        data[place:place] = data[place : place + chance.randrange(1, 64)]
    elif kind == 4:
        data[place:place] = chance.choice(_EDGES)
    elif kind == 5:
        other = chance.choice(seeds)
        start = chance.randrange(len(other) + 1)
        data[place:] = other[start:]
    else:
        data[place:place] = chance.randbytes(chance.randrange(1, 16))
