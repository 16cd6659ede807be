"""What a sample of mutants came to: kept in `figures.json`, and shown in docs/testing.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from .nearest_tests import LAYERS

__all__ = [
    "BEGIN", "END", "FIGURES", "PAGE", "Explanation", "Figures", "Result", "Share", "explained", "explanations",
    "read_figures", "render", "summary", "update_figures", "write_figures",
]  # fmt: skip

_HERE: Final = Path(__file__).resolve().parents[1]
FIGURES: Final = _HERE / "figures.json"
SAME_PROGRAM: Final = _HERE / "same_program.json"
PAGE: Final = _HERE.parents[1] / "docs" / "testing.md"
BEGIN, END = "<!-- mutation: written by the run -->\n", "<!-- end of the mutation figures -->\n"

Key = tuple[str, str, str, str]


class Result(Struct, frozen=True, kw_only=True):
    """One mutant, and the test that noticed it: empty when none did. `text` is the line of the module as it was."""

    layer: str
    module: str
    line: int
    text: str
    before: str
    after: str
    noticed: str

    @property
    def key(self) -> Key:
        """What names the mutant also when lines above it come or go."""
        return self.module, self.text, self.before, self.after

    @property
    def place(self) -> str:
        """Where the mutant is."""
        return f"{self.module}:{self.line}"

    @property
    def said(self) -> str:
        """One line about it."""
        return f"{self.place}: {self.before!r} -> {self.after!r}: {self.noticed or 'SURVIVED'}"


class Explanation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a mutant does what the program does, or does nothing that a test should hold."""

    module: str
    text: str
    before: str
    after: str
    why: str

    @property
    def key(self) -> Key:
        """As of the result."""
        return self.module, self.text, self.before, self.after


class Share(Struct, frozen=True, kw_only=True):
    """The mutants of a layer: made, noticed at first, noticed by tests that came later, and explained survivors."""

    mutants: int
    noticed: int
    mended: int
    explained: int


class Figures(Struct, frozen=True, kw_only=True):
    """The last sample that was kept, with all mutants that survived at first."""

    seed: int
    layers: dict[str, Share]
    survivors: list[Result]


def read_figures() -> Figures:
    """The contents of `figures.json`."""
    return msgspec.json.decode(FIGURES.read_bytes(), type=Figures)


def explanations() -> list[Explanation]:
    """The contents of `same_program.json`."""
    return msgspec.json.decode(SAME_PROGRAM.read_bytes(), type=list[Explanation])


def explained() -> dict[Key, str]:
    """The explanation of each mutant that has one."""
    return {one.key: one.why for one in explanations()}


def summary(results: Sequence[Result], known: Mapping[Key, str]) -> str:
    """One line for people."""
    noticed = sum(bool(result.noticed) for result in results)
    same = sum(not result.noticed and result.key in known for result in results)
    return f"{noticed} of {len(results)} mutants were noticed; {same} more are explained"


def write_figures(seed: int, results: Sequence[Result], known: Mapping[Key, str]) -> None:
    """Keeps the figures of a sample, and writes them into the page."""
    layers = {}
    for name in LAYERS:
        own = [result for result in results if result.layer == name]
        noticed = sum(bool(result.noticed) for result in own)
        layers[name] = Share(mutants=len(own), noticed=noticed, mended=0, explained=0)
    survivors = [result for result in results if not result.noticed]
    _keep(Figures(seed=seed, layers=_judged(layers, survivors, known), survivors=survivors))


def update_figures(results: Sequence[Result], known: Mapping[Key, str]) -> None:
    """Keeps what has become of the survivors of the sample."""
    before = read_figures()
    _keep(Figures(seed=before.seed, layers=_judged(before.layers, results, known), survivors=list(results)))


def _judged(layers: Mapping[str, Share], survivors: Sequence[Result], known: Mapping[Key, str]) -> dict[str, Share]:
    def count(layer: str, holds: Callable[[Result], bool]) -> int:
        return sum(holds(result) for result in survivors if result.layer == layer)

    return {
        name: Share(
            mutants=share.mutants,
            noticed=share.noticed,
            mended=count(name, lambda result: bool(result.noticed)),
            explained=count(name, lambda result: not result.noticed and result.key in known),
        )
        for name, share in layers.items()
    }


def _keep(figures: Figures) -> None:
    FIGURES.write_text(json.dumps(msgspec.to_builtins(figures), indent=2) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + render(figures) + END + rest.partition(END)[2])


def render(figures: Figures) -> str:
    """The table of docs/testing.md."""
    lines = [
        f"Of the mutants that seed {figures.seed} chose:",
        "",
        "| package | mutants | noticed at first | noticed by tests written for them | survive, explained | survive |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    total = [0, 0, 0, 0]
    for name, share in figures.layers.items():
        numbers = [share.mutants, share.noticed, share.mended, share.explained]
        total = [a + b for a, b in zip(total, numbers, strict=True)]
        lines.append(_line(f"`{LAYERS[name].package}`", *numbers))
    return "\n" + "\n".join([*lines, _line("all", *total)]) + "\n\n"


def _line(name: str, mutants: int, noticed: int, mended: int, same: int) -> str:
    return f"| {name} | {mutants} | {noticed} | {mended} | {same} | {mutants - noticed - mended - same} |"
