"""One spelling for each CPU architecture, whether the kernel, Go, Docker or a person named it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

__all__ = ["architecture_name", "same_architecture"]

_SPELLINGS: Final = {
    "amd64": "x86_64",
    "x64": "x86_64",
    "em64t": "x86_64",
    "aarch64": "arm64",
    "armv8": "arm64",
    "armv8l": "arm64",
    "armv8b": "arm64",
    "i86pc": "x86",
    "ia32": "x86",
    "386": "x86",
    "powerpc64le": "ppc64le",
    "loong64": "loongarch64",
}


@lru_cache(maxsize=1024)
def architecture_name(name: str) -> str:
    """The one spelling of an architecture ("amd64" and "x86-64" are "x86_64", "aarch64" is "arm64").

    A name that is not known is kept, in lower case.
    """
    folded = name.strip().casefold().replace("-", "_")
    if re.fullmatch(r"i[3-6]86", folded):
        return "x86"
    if re.fullmatch(r"armv[5-7].*|armhf|armel", folded):
        return "arm"
    return _SPELLINGS.get(folded, folded)


def same_architecture(one: str, other: str) -> bool:
    """Whether two spellings mean the same architecture, whichever side wrote which."""
    return architecture_name(one) == architecture_name(other)
