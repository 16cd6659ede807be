"""The description of a processor in `/proc/cpuinfo`, whose fields differ for each architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

__all__ = ["Processor", "describe_processor", "lowest_clock"]

_IN_MODEL: Final = re.compile(r"@\s*([0-9]{1,3}(?:\.[0-9]{1,3})?)\s*GHz")
_MEGAHERTZ: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?(?=$|MHz$)")

# Source: the kernel's arch/arm64/include/asm/cputype.h.
_ARM_VENDORS: Final = {
    0x41: "ARM",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x50: "APM",
    0x51: "Qualcomm",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}
_ARM_MODELS: Final = {
    (0x41, 0xB76): "ARM1176",
    (0x41, 0xC07): "Cortex-A7",
    (0x41, 0xC0F): "Cortex-A15",
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD85): "Cortex-X925",
    (0x41, 0xD87): "Cortex-A725",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0xC0, 0xAC3): "Ampere-1",
    (0xC0, 0xAC4): "Ampere-1a",
}


class Processor(NamedTuple):
    """The description of a processor. Clocks are in hertz, 0 if unknown. `architecture` is the kernel's spelling."""

    vendor: str
    model: str
    architecture: str
    clock_speed: int
    base_clock_speed: int


def describe_processor(processors: tuple[Mapping[str, str], ...], architecture: str | None) -> Processor:
    """Read the blocks of `/proc/cpuinfo`. `architecture` is the kernel's own spelling, if known."""
    # The last block of an ARM board describes the board, so the first block with a field is used.
    fields: dict[str, str] = {}
    for block in processors:
        for key, value in block.items():
            fields.setdefault(key, value)
    parts = [part for block in processors if (part := _parse_number(block.get("CPU part"))) is not None]
    vendor, model = _vendor_and_model(fields, list(dict.fromkeys(parts)))
    named = _IN_MODEL.search(model)
    return Processor(
        vendor=vendor,
        model=model,
        architecture=architecture or _guess_architecture(fields),
        clock_speed=max((_parse_clock(block) for block in processors), default=0),
        base_clock_speed=round(float(named[1]) * 1000) * 10**6 if named else 0,
    )


def _vendor_and_model(fields: Mapping[str, str], parts: Sequence[int]) -> tuple[str, str]:
    implementer = _parse_number(fields.get("CPU implementer"))
    if implementer is not None:
        vendor = _ARM_VENDORS.get(implementer, "")
        # A machine with several kinds of cores is described by all of them.
        models = [_ARM_MODELS.get((implementer, one), "") for one in parts] or [""]
        return vendor, " + ".join(models) if all(models) else fields.get("model name", "")
    # x86, then RISC-V, POWER, s390 and LoongArch.
    vendor = next((fields[key] for key in ("vendor_id", "mvendorid") if key in fields), "")
    model = next((fields[key] for key in ("model name", "Model Name", "uarch", "cpu", "isa") if key in fields), "")
    return vendor, " ".join(model.split())


def _parse_number(text: str | None) -> int | None:
    return int(text, 0) if text and re.fullmatch(r"0x[0-9a-fA-F]{1,8}|[1-9][0-9]{0,8}|0", text) else None


def _parse_clock(block: Mapping[str, str]) -> int:
    """The current clock of one CPU in hertz. Virtual machines report no other."""
    found = _MEGAHERTZ.match(block.get("cpu MHz") or block.get("clock") or "")
    return round(float(found[0]) * 10**6) if found else 0


def lowest_clock(processors: tuple[Mapping[str, str], ...], cpus: frozenset[int]) -> int:
    """Return the lowest present clock of these CPUs in hertz; 0 where it is not known of all of them."""
    clocks = {_parse_number(block.get("processor")): _parse_clock(block) for block in processors}
    return min((clocks.get(cpu, 0) for cpu in cpus), default=0)


def _guess_architecture(fields: Mapping[str, str]) -> str:
    if "flags" in fields:
        return "x86_64" if "lm" in fields["flags"].split() else "x86"
    if "CPU architecture" in fields:
        return "arm64" if fields["CPU architecture"] in ("8", "9", "AArch64") else "arm"
    if fields.get("isa", "").startswith("rv64"):
        return "riscv64"
    return ""
