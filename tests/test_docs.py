"""The documents agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dms_resources import components, demands
from dms_resources.ledger import accounts, leases
from dms_resources.machine.usage import UsageMonitor
from dms_resources.manager import ResourceManager

DOCS = Path(__file__).parents[1] / "docs"
TYPES = (DOCS / "types.md").read_text()
FRONT = [getattr(module, name) for module in (components, demands, leases) for name in module.__all__]
STRUCTS = [
    one
    for one in FRONT
    if isinstance(one, type) and hasattr(one, "__struct_fields__") and not one.__name__.endswith("Shortage")
] + [accounts.Account, accounts.Allowance, accounts.HolderShare]


def _drawn(name: str) -> list[str]:
    found = re.search(rf"class {name} \{{\n(.*?)\n    \}}", TYPES, re.DOTALL)
    assert found, f"docs/types.md does not draw {name}"
    return [re.sub(r"\(.*\)$", "", line).split()[-1].lstrip("+") for line in found[1].splitlines()]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_the_class_diagram_has_every_field(struct: type) -> None:
    inherited = getattr(struct.__bases__[0], "__struct_fields__", ())
    own = [field for field in struct.__struct_fields__ if field not in inherited]
    assert _drawn(struct.__name__) == own


@pytest.mark.parametrize("enumeration", [components.GPUVendor, leases.LeaseState, leases.EndReason])
def test_the_class_diagram_has_every_value(enumeration) -> None:
    assert _drawn(enumeration.__name__)[1:] == [value.name for value in enumeration]


@pytest.mark.parametrize("service", [ResourceManager, UsageMonitor])
def test_the_class_diagram_names_methods_that_exist(service: type) -> None:
    for name in _drawn(service.__name__):
        assert hasattr(service, name)


def test_links_lead_somewhere() -> None:
    for path in [*DOCS.glob("*.md"), DOCS.parent / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"


def _cells(row: str) -> int:
    plain = re.sub(r"`[^`]*`", "", row.replace(r"\|", ""))
    return plain.count("|")


def test_every_row_of_a_table_has_the_cells_of_its_head() -> None:
    for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        head = 0
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.startswith("|"):
                head = 0
                continue
            head = head or _cells(line)
            assert _cells(line) == head, f"{path.name}:{number}: {line}"


def test_the_threat_model_names_tests_that_exist() -> None:
    tests = Path(__file__).parent
    named = set(re.findall(r"`(test_\w+|tests/[\w/]+)`", (DOCS / "threat-model.md").read_text()))
    assert len(named) > 20
    for name in named:
        there = (tests.parent / name).exists() if "/" in name else any(tests.rglob(f"{name}.py"))
        assert there, name


def test_the_table_of_the_architecture_names_what_exists() -> None:
    root = DOCS.parent
    rows = re.findall(r"^\| [^|]+\? \| `([^`]+)` \| `(\w+)` \|$", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    for path, name in rows:
        assert re.search(rf"^(?:async def|def|class) {name}\b", (root / path).read_text(), re.MULTILINE), (
            f"{path}: {name}"
        )
