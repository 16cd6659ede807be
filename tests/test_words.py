"""The words of the project are those of the field, and no public name stands for two things."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("peer", "protocols", "resources", "examples") for path in (ROOT / folder).rglob("*.py")]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
# Private words that a new reader would have to learn, and phrases that have to be read twice.
FORBIDDEN = re.compile(
    r"\b(?:errands?|arrivals|company|conducts?|caged?|guardian|(?<!head)rooms?|quicken|shun(?:s|ned)?|whoever|how-manieth)\b"
    r"|\b(?:day in hell|first light|in good order|for its sake|nobody's job|tells the Unix time|newcomers?)\b"
    r"|is no (?:multiaddr|field|duration|peer id|number|time)\b"
    r'|"""(?:Nothing|Who asks|Of whom|As the (?:protocol|connection below) says|That it was done)\."""',
    re.IGNORECASE,
)
# A command's function has the name of its command. Pure functions of the ledger have the names of the operations that
# they decide; callers qualify them with the module.
QUALIFIED = (
    "peer/dms_peer/cli/commands/",
    "resources/dms_resources/ledger/decisions.py",
    "resources/dms_resources/ledger/endings.py",
)
# dms_host imports nothing of ours, so that it has copies of these few lines. Programs have a `main`.
COPIED = {"BoundedDict", "open_background", "main", "logger"}


def test_no_forbidden_word_is_used() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in (*SOURCES, *PAGES)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)


def _public_names(path: Path) -> tuple[set[str], set[str]]:
    """The names that a module lists in `__all__`, and those that it defines itself."""
    listed: set[str] = set()
    defined: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        defined |= names
        if "__all__" in names and isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            listed = set(ast.literal_eval(node.value))
    return listed, defined


MODULES = [path for path in SOURCES if "examples" not in path.parts and not path.name.startswith("__")]


def test_every_module_lists_its_public_names() -> None:
    assert [str(path) for path in MODULES if "__all__" not in _public_names(path)[1]] == []


def test_no_public_name_stands_for_two_things() -> None:
    places = defaultdict(list)
    for path in MODULES:
        name = str(path.relative_to(ROOT))
        if name.startswith(QUALIFIED):
            continue
        listed, defined = _public_names(path)
        for public in listed & defined - COPIED:
            places[public].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
