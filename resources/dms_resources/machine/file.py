"""A machine that is described in a JSON file instead of measured, for demonstrations and tests.

The fields are the DMS's. `cpu.cores`, `ram.size` and `disk.size` are required. Sizes are bytes or text such as "4GiB",
clocks are any number of hertz, architectures may have any of their spellings. `parse_machine` reads the output of
`machine_document` as the same machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from ..components import CPU, GPU, RAM, Disk, GPUVendor, MachineResources, NetworkInfo
from ..encoding.documents import to_document
from ..encoding.go_structs import plain_resources
from ..errors import AmountError, MachineFileError
from ..private_files import write_private
from ..units import decode_value, parse_size
from .architectures import architecture_name

__all__ = ["machine_document", "parse_machine", "read_machine_file", "write_machine_file"]

_LARGEST_FILE: Final = 4 * 2**20
_MOST_GPUS: Final = 4096
_PARTS: Final[dict[str, type[msgspec.Struct]]] = {"cpu": CPU, "ram": RAM, "disk": Disk, "network": NetworkInfo}
_NEEDED: Final = ("cpu", "ram", "disk")
_CLOCKS: Final = frozenset({"clock_speed", "base_clock_speed"})
# The fields that are bytes, and may therefore be written as "4GiB".
_SIZES: Final = {
    "cpu": ("cache_size",),
    "ram": ("size",),
    "disk": ("size", "read_speed", "write_speed"),
    "gpu": ("vram",),
}


def read_machine_file(path: Path) -> MachineResources:
    """Read a machine's description. The result is marked as simulated. The path `-` is standard input.

    Raises `MachineFileError`, which names the file, the field and what to do.
    """
    if str(path) == "-":
        return parse_machine(_read_standard_input(), "standard input")
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MachineFileError(
            f"the machine file {path} cannot be read: {reason}", hint="give the path of a JSON file that describes it"
        ) from None
    return parse_machine(content, str(path))


@cache
def _read_standard_input() -> bytes:
    # Standard input can be read only once, and a command may need the machine twice.
    return sys.stdin.buffer.read(_LARGEST_FILE + 1)


def parse_machine(content: bytes, name: str) -> MachineResources:
    """Read a machine's description from JSON. Errors use `name` for it. Raises `MachineFileError`."""
    return _Description(name).parse(content)


def machine_document(machine: MachineResources) -> dict[str, Any]:
    """The JSON form of a machine, with the DMS's field names. Sizes are integers, and no field is left out for zero."""
    document: dict[str, Any] = to_document(machine)
    return document


def write_machine_file(path: Path, machine: MachineResources) -> None:
    """Write a machine's description, whole or not at all, as `read_machine_file` reads it. Raises `OSError`."""
    text = msgspec.json.format(msgspec.json.encode(machine_document(machine)), indent=2)
    write_private(path, text + b"\n")


class _Description:
    """Parses one description. Errors use `name` for the file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _fail(self, problem: str, hint: str) -> NoReturn:
        raise MachineFileError(f"{self._name}: {problem}", hint=hint)

    def parse(self, content: bytes) -> MachineResources:
        # A document of a Go program has null for what is nil, and floats for amounts.
        document = plain_resources(self._decode(content))
        self._check_names(document, "", MachineResources)
        for part in _NEEDED:
            if part not in document:
                self._fail(f"{part} is missing", _EXAMPLE)
        parts: dict[str, Any] = {
            part: self._convert(document[part], part, kind) for part, kind in _PARTS.items() if part in document
        }
        parts |= {key: self._sentences(document, key) for key in ("limits", "problems")}
        return MachineResources(**parts, gpus=self._gpus(document.get("gpus", [])), simulated=True)

    def _decode(self, content: bytes) -> dict[str, Any]:
        if len(content) > _LARGEST_FILE:
            self._fail(f"it is larger than {_LARGEST_FILE} bytes", "describe one machine only")
        try:
            document = msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._fail(f"invalid JSON: {error}", "check it with a JSON editor")
        if not isinstance(document, dict):
            self._fail("it is not one JSON object", _EXAMPLE)
        return document

    def _check_names(self, value: dict[str, Any], where: str, kind: type[msgspec.Struct]) -> None:
        known = [field.encode_name for field in msgspec.structs.fields(kind)]
        for name in value:
            if name not in known:
                self._fail(f"unknown field {where}{name}", f"use one of {', '.join(known)}")

    def _convert(self, value: Any, where: str, kind: type[msgspec.Struct]) -> Any:
        """One part of the machine as its type. Sizes may be text."""
        if not isinstance(value, dict):
            self._fail(f"{where} is not an object", f"write {{...}} with the fields of {where.partition('[')[0]}")
        self._check_names(value, f"{where}.", kind)
        value = {name: self._readable(field, name, where) for name, field in value.items()}
        try:
            return msgspec.convert(value, kind, dec_hook=decode_value)
        except msgspec.ValidationError as error:
            problem, _, inside = str(error).partition(" - at `$")
            self._fail(f"{where}{inside.rstrip('`')}: {problem}", _advice(problem))

    def _readable(self, value: Any, name: str, where: str) -> Any:
        """The value of a field, with text converted to a size, or a spelling of an architecture."""
        if name in _CLOCKS and isinstance(value, float):
            self._fail(f"{where}.{name}: {value} is out of range", "write a number of hertz, such as 2400000000")
        if name == "architecture" and isinstance(value, str):
            return architecture_name(value)
        return self._size(value, name, where)

    def _size(self, value: Any, name: str, where: str) -> Any:
        if not isinstance(value, str) or name not in _SIZES.get(where.partition("s[")[0], ()):
            return value
        try:
            return parse_size(value)
        except AmountError as error:
            self._fail(
                f"{where}.{name}: {error}", 'write "4GiB", "512MiB" or "10GB", or a number of bytes without quotes'
            )

    def _gpus(self, value: Any) -> tuple[GPU, ...]:
        if not isinstance(value, list):
            self._fail("gpus is not a list", "write one object for each GPU, or [] for none")
        if len(value) > _MOST_GPUS:
            self._fail(f"gpus has {len(value)} entries", f"describe at most {_MOST_GPUS} GPUs")
        gpus = tuple(self._gpu(gpu, index) for index, gpu in enumerate(value))
        for field in ("uuid", "index"):
            for twice in _repeated(getattr(gpu, field) for gpu in gpus):
                self._fail(f"gpus: the {field} {twice} is there twice", f"give each GPU a {field} of its own")
        return gpus

    def _gpu(self, value: Any, index: int) -> GPU:
        where = f"gpus[{index}]"
        if isinstance(value, dict):
            value = {"index": index, "uuid": f"GPU-simulated-{index}", **value}
        gpu: GPU = self._convert(value, where, GPU)
        if not gpu.uuid.strip():
            self._fail(f"{where}.uuid is empty", "leave it out, or give the GPU a name of its own")
        return gpu

    def _sentences(self, document: dict[str, Any], key: str) -> tuple[str, ...]:
        try:
            return msgspec.convert(document.get(key, []), tuple[str, ...])
        except msgspec.ValidationError:
            self._fail(f"{key} is not a list of sentences", "leave it out")


_EXAMPLE: Final = 'write for example {"cpu": {"cores": 4}, "ram": {"size": "16GiB"}, "disk": {"size": "100GiB"}}'


def _advice(problem: str) -> str:
    if "enum" in problem:
        return "use one of " + ", ".join(vendor.value for vendor in GPUVendor)
    if "missing required field" in problem:
        return _EXAMPLE
    return "correct the value"


def _repeated(values: Iterable[object]) -> Iterator[object]:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            yield value
        seen.add(value)
