"""Reads the executors of the owner: what runs jobs on this machine, and with which limits (docs/executors.md)."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from dms_resources.units import MIB

from ..executors.settings import (
    CAPABILITY_PROFILES,
    CommandSettings,
    DockerSettings,
    EntryPointExecutorSettings,
    ExecutorSettings,
    NetworkAccess,
)
from .yaml_fields import Field, Fields

__all__ = ["read_executors"]

_KINDS: Final = ("docker", "command", "python")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A host, a path whose parts may be *, and perhaps a tag or a digest.
_IMAGE_PATTERN: Final = re.compile(r"[a-z0-9.:*-]+(?:/[a-z0-9._*-]+)+(?::[A-Za-z0-9._*-]+|@sha256:[0-9a-f]{64})?")
_MOST_EXECUTORS: Final = 16
_MOST_IMAGES: Final = 256
_MOST_VARIABLES: Final = 64
_MOST_PROCESSES: Final = 1_000_000
_LONGEST_PULL: Final = 86400.0
_LONGEST_READY: Final = 3600.0
# Less than this leaves no whole piece of output.
_LEAST_OUTPUT: Final = 64 * 1024


def read_executors(field: Field, folder: Path) -> dict[str, ExecutorSettings]:
    """Reads all executors by their names; programs with a relative path are looked up in `folder`.

    An executor that is named `docker` or `command` needs no `kind`. Raises DocumentError.
    """
    if not field.is_mapping:
        field.fail("must be a mapping", "write the name of each executor, such as `docker: {images: [...]}`")
    names = field.names()
    if len(names) > _MOST_EXECUTORS:
        field.fail(f"has {len(names)} entries", f"write at most {_MOST_EXECUTORS}")
    return {name: _executor(name, one, folder) for name, one in field.fields(names).entries.items()}


def _executor(name: str, field: Field, folder: Path) -> ExecutorSettings:
    if not _NAME.fullmatch(name):
        field.fail("its name is not lower-case letters, digits, _ and -", "write such as `docker:`")
    readers = {"docker": _docker_readers(), "command": _command_readers(folder), "python": _python_readers()}
    known = ("kind", *dict.fromkeys(name for one in readers.values() for name in one))
    kind = field.fields(known).get("kind", lambda one: one.choice(_KINDS), name if name in _KINDS[:2] else "")
    if not kind:
        field.fail("kind is missing", f"write kind: one of {', '.join(_KINDS)}")
    fields = field.fields(("kind", *readers[kind]))
    if kind == "docker":
        return DockerSettings(**fields.read_present(readers[kind]))
    needed = {"command": "command", "python": "name"}[kind]
    if needed not in fields:
        field.fail(f"{needed} is missing", f"add {needed}")
    values = fields.read_present(readers[kind])
    return CommandSettings(**values) if kind == "command" else EntryPointExecutorSettings(**values)


_Readers = Mapping[str, Callable[[Field], Any]]


def _bounds() -> dict[str, Callable[[Field], Any]]:
    return {"output_bytes": _output, "output_rate": _output}


def _docker_readers() -> _Readers:
    return {
        "socket": _socket,
        "images": lambda one: tuple(map(_image, one.items(_MOST_IMAGES))),
        "networks": lambda one: tuple(item.choice(get_args(NetworkAccess)) for item in one.items(3)),
        "capabilities": lambda one: one.choice(tuple(CAPABILITY_PROFILES)),
        "read_only": Field.flag,
        "scratch": Field.size,
        "processes": _processes,
        "publish": _address,
        "pull_seconds": lambda one: one.duration(1, _LONGEST_PULL),
        "image_bytes": Field.size,
        **_bounds(),
    }


def _command_readers(folder: Path) -> _Readers:
    return {
        "command": lambda one: _command(one, folder),
        "ready_seconds": lambda one: one.duration(0.1, _LONGEST_READY),
        "environment": _environment,
        "limit": Field.flag,
        "processes": _processes,
        "cgroup": _socket,
        **_bounds(),
    }


def _python_readers() -> _Readers:
    return {"name": Field.text, "options": _options}


def _processes(field: Field) -> int:
    return field.whole(1, _MOST_PROCESSES)


def _output(field: Field) -> int:
    size = field.size()
    if not _LEAST_OUTPUT <= size <= 1024 * MIB:
        field.fail("is not between 64 KiB and 1 GiB", "write such as 16MiB")
    return size


def _socket(field: Field) -> str:
    path = field.text(1024)
    if not os.path.isabs(path):
        field.fail("is not an absolute path", "write such as /run/podman/podman.sock")
    return path


def _address(field: Field) -> str:
    text = field.text()
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        field.fail(f"{text[:64]!r} is not an IP address", "write such as 0.0.0.0 or 192.0.2.7")


def _image(field: Field) -> str:
    text = field.text(512)
    if not _IMAGE_PATTERN.fullmatch(text):
        field.fail(
            f"{text[:64]!r} is not a pattern of images",
            "write its registry too: docker.io/library/python:3.12, or ..:*",
        )
    return text


def _command(field: Field, folder: Path) -> tuple[str, ...]:
    parts = field.items(64)
    if not parts:
        field.fail("is empty", "write [./program, argument]")
    name, *arguments = (part.text(longest=1024) for part in parts)
    path = shutil.which(folder / name if os.sep in name else name)
    if path is None:
        parts[0].fail(f"cannot run {name}: no such executable file", "write its path, and make it executable")
    return os.path.abspath(path), *arguments


def _environment(field: Field) -> tuple[str, ...]:
    return tuple(f"{name}={one.text(4096)}" for name, one in _named(field).entries.items())


def _options(field: Field) -> dict[str, str]:
    return {name: one.text(4096) for name, one in _named(field).entries.items()}


def _named(field: Field) -> Fields:
    """A mapping with names of variables."""
    if not field.is_mapping:
        field.fail("must be a mapping", "write NAME: value")
    names = field.names()
    if len(names) > _MOST_VARIABLES:
        field.fail(f"has {len(names)} entries", f"write at most {_MOST_VARIABLES}")
    for name in names:
        if not _VARIABLE.fullmatch(name):
            field.fail(f"{name[:64]!r} is not a name", "write letters, digits and _")
    return field.fields(names)
