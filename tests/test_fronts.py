"""Each package exports what its users import, and docs/api.md lists it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("api_page", ROOT / "tests" / "api_page.py")
assert _spec is not None
assert _spec.loader is not None
api_page = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(api_page)
PACKAGES = [importlib.import_module(name) for name in api_page.PACKAGES]


@pytest.fixture(params=PACKAGES, ids=lambda package: package.__name__)
def package(request):
    return request.param


def test_every_exported_name_is_there(package) -> None:
    assert len(package.__all__) > 10
    for name in package.__all__:
        getattr(package, name)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = package.missing


def test_the_list_the_types_and_the_loader_agree(package) -> None:
    tree = ast.parse(inspect.getsource(package))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = {
        "." * node.level + (node.module or ""): {alias.name for alias in node.names}
        for node in ast.walk(typed)
        if isinstance(node, ast.ImportFrom)
    }
    assert imports == {module: set(names) for module, names in package._MODULES.items()}
    assert sorted(package.__all__) == sorted(name for names in imports.values() for name in names)
    assert dir(package) == sorted(package.__all__)


def test_an_exported_name_is_public_where_it_is_defined(package) -> None:
    for module, names in package._MODULES.items():
        defining = importlib.import_module(module, package.__name__)
        assert set(names) <= set(defining.__all__)


@pytest.mark.parametrize("name", api_page.PACKAGES)
def test_importing_a_front_loads_nothing_else(name: str) -> None:
    script = f"import sys, {name}; print(*sorted(module for module in sys.modules if '.' not in module))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert name in loaded
    assert not loaded & {"libp2p", "trio", "psutil", "msgspec", "cbor2"}


def test_each_name_has_a_sentence(package) -> None:
    without = [name for name in package.__all__ if not api_page.sentence(package, name)]
    assert without == []


def test_the_page_of_the_api_is_up_to_date() -> None:
    assert (ROOT / "docs" / "api.md").read_text() == api_page.page(), "python tests/api_page.py > docs/api.md"


def _program(text: str) -> list[ast.ImportFrom]:
    ours = {package.__name__ for package in PACKAGES}
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return [node for node in imports if (node.module or "").partition(".")[0] in ours]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.py")), ids=lambda path: path.name)
def test_examples_import_from_fronts_only(path: Path) -> None:
    imports = _program(path.read_text())
    # The programs for executors stand alone: they know JSON and nothing of ours.
    assert bool(imports) == (path.parent.name != "executors")
    for node in imports:
        assert node.module in api_page.PACKAGES, f"{path.name}:{node.lineno}"
        assert {alias.name for alias in node.names} <= set(importlib.import_module(node.module).__all__)


ROOTS = {"peer/dms_peer": 10, "peer/dms_host": 12, "protocols/dms_protocols": 12, "resources/dms_resources": 12}


@pytest.mark.parametrize(("package", "most"), ROOTS.items(), ids=ROOTS)
def test_the_root_of_a_package_stays_small(package: str, most: int) -> None:
    found = sorted(path.name for path in (ROOT / package).glob("*.py"))
    assert len(found) <= most, found
