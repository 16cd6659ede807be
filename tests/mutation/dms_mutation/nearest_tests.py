"""Names the tests that belong to a module: `tests` mirrors the packages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

__all__ = ["LAYERS", "Layer", "nearest_tests"]


class Layer(Struct, frozen=True):
    """A package whose mutants are made, and its tests: a folder, and files elsewhere. Paths are from the root."""

    package: str
    tests: str
    also: tuple[str, ...] = ()

    def modules(self, root: Path) -> list[Path]:
        """The modules of the package, from the root of the repository."""
        return sorted(path.relative_to(root) for path in (root / self.package).rglob("*.py"))


LAYERS: Final = {
    "resources": Layer("resources/dms_resources", "tests/resources"),
    "protocols": Layer(
        # Answers are checked where a requester asks.
        "protocols/dms_protocols",
        "tests/protocols",
        ("tests/peer/requesting/test_lying_providers.py",),
    ),
    "requesting": Layer("peer/dms_peer/requesting", "tests/peer/requesting"),
    "host": Layer("peer/dms_host", "tests/host"),
}


def nearest_tests(module: Path, layer: Layer, root: Path, seconds: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """The module's own tests, and those that stand near to it; `seconds` says how long the tests of a file take.

    Near are the nearest folder that mirrors one of the module's, the folders above it, and the rest of the layer. Those
    that take longest come last.
    """
    inner = module.relative_to(layer.package).with_suffix("")
    tests = root / layer.tests
    own = tests / inner.parent / f"test_{inner.name}.py"
    folder = next(tests / parent for parent in inner.parents if (tests / parent).is_dir())
    near = [*_below(folder), *(path for parent in folder.parents for path in sorted(parent.glob("test_*.py")))]
    every = [*near, *_below(tests), *(root / name for name in layer.also)]
    others = dict.fromkeys(_name(path, root) for path in every if path != own and root / "tests" in path.parents)
    slow = sorted(seconds.values())[-len(seconds) // 10 :] if seconds else [float("inf")]
    return (
        [_name(own, root)] if own.exists() else [],
        sorted(others, key=lambda name: seconds.get(name, 0.0) >= slow[0]),
    )


def _below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("test_*.py"))


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))
