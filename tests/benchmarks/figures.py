"""The measured figures with the value of every round, the ratios between them, and their file."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

Name = TypeVar("Name")
FORMAT: Final = 1
OURS: Final = "ours"
OURS_TO_OURS: Final = "ours to ours"
GO: Final = "go-libp2p"
JS: Final = "js-libp2p"
BARE_KEY: Final = "bare Ed25519"
BARE_SQLITE: Final = "bare SQLite"
STATUS: Final = "dms-peer status"
NOTHING: Final = "python -c pass"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: `what` of a part was measured, for which `series`, in which unit, once in every round."""

    part: str
    what: str
    series: str
    unit: str
    better: Literal["higher", "lower"]
    values: tuple[float, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """The key of this figure, the same in every run."""
        return self.part, self.what, self.series

    @property
    def median(self) -> float:
        """The value that the tables show."""
        return statistics.median(self.values)

    def through(self, other: Figure) -> tuple[float, ...]:
        """The ratios, round by round, so that a busy moment of the machine affects both values."""
        return tuple(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True))


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one run, and the description of the machine."""

    format: int = FORMAT
    version: str
    date: str
    machine: str
    software: dict[str, str]
    rounds: int
    figures: tuple[Figure, ...]

    def figure(self, part: str, what: str, series: str) -> Figure | None:
        """The figure of that name, if it was measured."""
        return next((one for one in self.figures if one.key == (part, what, series)), None)

    def ratio(self, above: tuple[str, str, str], below: tuple[str, str, str]) -> float | None:
        """The median of the ratios of the rounds. None if one of the two was not measured, or is 0."""
        first, second = self.figure(*above), self.figure(*below)
        if first is None or second is None or not all(second.values):
            return None
        return statistics.median(first.through(second))

    def of_part(self, part: str) -> list[Figure]:
        """The figures of one part, in their order."""
        return [one for one in self.figures if one.part == part]


def read_run(path: Path) -> Run:
    """A run from its file; raises msgspec.ValidationError for anything else."""
    run = msgspec.json.decode(path.read_bytes(), type=Run)
    if run.format != FORMAT:
        raise msgspec.ValidationError(f"{path} has format {run.format}, not {FORMAT}")
    return run


def write_run(run: Run, path: Path) -> None:
    """The file of a run, for people too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def distinct(names: Iterable[Name]) -> list[Name]:
    """Each name once, in the order of its first appearance."""
    return list(dict.fromkeys(names))


def rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Rounded to four significant digits, because more is noise."""
    return tuple(float(f"{value:.4g}") for value in values)


def machine_description() -> str:
    """A description of the machine, without names."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{os.cpu_count()} cores of {model}, {platform.system()} {platform.release().partition('-')[0]}"


def python_software() -> dict[str, str]:
    """The versions of our side's software."""
    return {"Python": platform.python_version(), "py-libp2p": version("libp2p")}
