"""One spelling for each CPU architecture. The kernel, Go, Docker and people spell them differently."""

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
    """The canonical spelling of an architecture ("x86_64" for "amd64" and "x86-64", "arm64" for "aarch64").

    An unknown name is returned in lower case.
    """
    folded = name.strip().casefold().replace("-", "_")
    if re.fullmatch(r"i[3-6]86", folded):
        return "x86"
    if re.fullmatch(r"armv[5-7].*|armhf|armel", folded):
        return "arm"
    return _SPELLINGS.get(folded, folded)


def same_architecture(one: str, other: str) -> bool:
    """Whether two spellings mean the same architecture."""
    return architecture_name(one) == architecture_name(other)
