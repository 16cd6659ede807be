"""Names the tests that belong to a module: `tests` mirrors the packages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

__all__ = ["LAYERS", "Layer", "nearest_tests"]

SLOW: Final = 5.0
"""Seconds from which on the tests of a file are slow."""


class Layer(Struct, frozen=True):
    """A package whose mutants are made, and the folder of its tests; both from the root of the repository."""

    package: str
    tests: str

    def modules(self, root: Path) -> list[Path]:
        """The modules of the package, from the root of the repository."""
        return sorted(path.relative_to(root) for path in (root / self.package).rglob("*.py"))


LAYERS: Final = {
    "resources": Layer("resources/dms_resources", "tests/resources"),
    "protocols": Layer("protocols/dms_protocols", "tests/protocols"),
    "requesting": Layer("peer/dms_peer/requesting", "tests/peer/requesting"),
    "host": Layer("peer/dms_host", "tests/host"),
}


def nearest_tests(module: Path, layer: Layer, root: Path, seconds: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """The module's own tests, and those that stand near to it; `seconds` says how long the tests of a file take.

    Near are the nearest folder that mirrors one of the module's, the folders above it, and the rest of the layer, in
    this order. Slow files are left out, unless they are the module's own.
    """
    inner = module.relative_to(layer.package).with_suffix("")
    tests = root / layer.tests
    own = tests / inner.parent / f"test_{inner.name}.py"
    folder = next(tests / parent for parent in inner.parents if (tests / parent).is_dir())
    near = [*_below(folder), *(path for parent in folder.parents for path in sorted(parent.glob("test_*.py")))]
    others = dict.fromkeys(
        _name(path, root) for path in (*near, *_below(tests)) if path != own and tests in path.parents
    )
    quick = [name for name in others if seconds.get(name, 0.0) < SLOW]
    return [_name(own, root)] if own.exists() else [], quick


def _below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("test_*.py"))


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))
