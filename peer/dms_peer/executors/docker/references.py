"""Names of images: one strict form, and the patterns of an owner's list.

Engines accept much more: short names, ids, transports, files. A job names a registry, a repository, and a tag or a
digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

__all__ = ["ImageReference", "is_allowed", "parse_image"]

_HOST: Final = re.compile(r"(?:localhost|[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})+|[a-z0-9-]{1,63}(?=:))(?::[0-9]{1,5})?")
_PART: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST: Final = 512
_DOCKER_HUB: Final = "docker.io"


class ImageReference(NamedTuple):
    """An image in a registry; `digest` is "" where only the tag is given."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def version(self) -> str:
        """The digest if there is one, else the tag: what a registry is asked for."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def parse_image(text: str) -> ImageReference:
    """Reads the name of an image; without tag and digest its tag is "latest". Raises ValueError for all else."""
    if len(text) > _LONGEST:
        raise ValueError(f"the name of the image has more than {_LONGEST} characters")
    name, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError(f"{text[:64]!r} has a digest that is not sha256 and 64 digits")
    registry, slash, path = name.partition("/")
    if not slash or not _HOST.fullmatch(registry):
        raise ValueError(f"{text[:64]!r} names no registry; write such as docker.io/library/python:3.12")
    path, colon, tag = path.partition(":")
    parts = path.split("/")
    if not all(_PART.fullmatch(part) for part in parts) or (colon and not _TAG.fullmatch(tag)):
        raise ValueError(f"{text[:64]!r} is not the name of an image; write such as docker.io/library/python:3.12")
    if registry == _DOCKER_HUB and len(parts) == 1:
        parts = ["library", *parts]
    return ImageReference(registry, "/".join(parts), tag or ("" if digest else "latest"), digest)


def is_allowed(image: ImageReference, patterns: Iterable[str]) -> bool:
    """Whether an owner's list has the image. In a pattern `*` stands for any characters but `/`.

    A pattern without tag and digest allows all of them. One with a tag does not allow a digest alone, which may be that
    of any image in the repository.
    """
    return any(_matches(image, pattern) for pattern in patterns)


def _matches(image: ImageReference, pattern: str) -> bool:
    name, at, digest = pattern.partition("@")
    if at and image.digest != digest:
        return False
    host, slash, path = name.partition("/")
    path, colon, tag = path.partition(":")
    if colon and not fnmatchcase(image.tag or "/", tag):
        return False
    wanted, given = [host, *path.split("/")], [image.registry, *image.repository.split("/")]
    return (
        bool(slash)
        and len(wanted) == len(given)
        and all(fnmatchcase(one, part) for one, part in zip(given, wanted, strict=True))
    )
