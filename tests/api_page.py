"""Writes docs/api.md: the names that each package exports, with the first sentence of their docstrings.

python tests/api_page.py > docs/api.md
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from types import ModuleType

HEAD = """\
# The Python API

Import from these four packages only: `from dms_peer import serve`. Their submodules may move between versions; the
names on this page stay. Each name is loaded when it is first used, so that importing a package costs next to nothing.

`python tests/api_page.py > docs/api.md` writes this page, and a test compares it. [architecture.md](architecture.md)
describes the packages, and `examples/` has whole programs.
"""
PACKAGES = ("dms_peer", "dms_protocols", "dms_resources", "dms_host")


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_section(importlib.import_module(name)) for name in PACKAGES)


def sentence(package: ModuleType, name: str) -> str:
    """The first sentence of the documentation of an exported name, "" if it has none."""
    value = getattr(package, name)
    if getattr(value, "__name__", None) == name:
        text = inspect.cleandoc(value.__doc__ or "")
    else:
        text = _text_of_constant(importlib.import_module(_module_of(package, name)), name)
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.])\s+(?=[A-Z`])", paragraph)[0]


def _section(package: ModuleType) -> str:
    about = " ".join((package.__doc__ or "").partition("\n\n")[0].split())
    rows = [f"| `{name}` | {sentence(package, name).replace('|', chr(92) + '|')} |" for name in package.__all__]
    return f"\n## {package.__name__}\n\n{about}\n\n| name | |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def _module_of(package: ModuleType, name: str) -> str:
    (module,) = (module for module, names in package._MODULES.items() if name in names)
    return package.__name__ + module if module.startswith(".") else module


def _text_of_constant(module: ModuleType, name: str) -> str:
    """The string below an assignment, or the comment above it."""
    source = inspect.getsource(module)
    body = ast.parse(source).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            return inspect.cleandoc(str(following.value.value))
        above = source.splitlines()[: node.lineno - 1]
        comment: list[str] = []
        while above and above[-1].startswith("#"):
            comment.insert(0, above.pop().lstrip("# "))
        return " ".join(comment)
    return ""


if __name__ == "__main__":
    sys.stdout.write(page())
