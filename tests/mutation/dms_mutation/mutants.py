"""Makes every program that differs from a module in one place.

An expression or a statement is replaced by another: comparisons and their boundaries, arithmetic, `and` and `or`,
`not`, numbers, truth values, names in quotes, `min` and `max`, returned values, and statements that are removed.
Annotations, the keywords of classes, docstrings, log lines, the text of messages and what only a type checker reads
stay as they are.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Mutant", "mutants_of"]

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
_DECLARING: Final = ("annotation", "returns", "decorator_list")
_PLAIN_TESTS: Final = (ast.Name, ast.Attribute, ast.Call, ast.NamedExpr, ast.Subscript, ast.Await)
# A word that a program may compare or look up; the text of messages has blanks.
_WORD: Final = re.compile(r"[a-z][a-z0-9_.]*")
_LOGGERS: Final = re.compile(r"_?log(ger)?s?")


@dataclass(frozen=True)
class Mutant:
    """A module's source with one place changed; `line` counts from 1."""

    line: int
    before: str
    after: str
    source: str = ""


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of the source."""
    octets = source.encode()
    starts = [0]
    for line in octets.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    made = []
    for node, other in _replacements(ast.parse(source)):
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        text = ast.unparse(ast.fix_missing_locations(other))
        if isinstance(node, ast.expr):
            text = f"({text})"
        mutated = (octets[:begin] + text.encode() + octets[end:]).decode()
        made.append(Mutant(node.lineno, octets[begin:end].decode(), text, mutated))
    return sorted(made, key=lambda mutant: mutant.line)


def _replacements(tree: ast.Module) -> Iterator[tuple[Any, ast.AST]]:
    for node in _mutable(tree):
        for other in _others(node):
            yield node, other
        match node:
            # Comparisons, `not`, `and` and `or` are changed in their own place.
            case ast.If(test=test) | ast.While(test=test) if isinstance(test, _PLAIN_TESTS):
                yield test, ast.UnaryOp(ast.Not(), test)


def _mutable(node: ast.AST) -> Iterator[ast.AST]:
    """This node and those below it that the running program uses."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or (
            name == "keywords" and isinstance(node, ast.ClassDef)
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _unused(child):
                yield from _mutable(child)


def _unused(node: ast.AST) -> bool:
    match node:
        # In Python 3.11 what is inside an f-string has no position.
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.AnnAssign(annotation=ast.Name(id="TypeAlias")):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return _LOGGERS.fullmatch(name) is not None
    return False


def _others(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                other = deepcopy(node)
                other.ops[place] = _COMPARISONS[type(operator)]()
                yield other
        case ast.BinOp(op=operator) if type(operator) in _ARITHMETIC:
            yield ast.BinOp(node.left, _ARITHMETIC[type(operator)](), node.right)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case ast.Call(func=ast.Name(id="min" | "max" as name)):
            yield ast.Call(ast.Name("max" if name == "min" else "min"), node.args, node.keywords)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=str(value)) if _WORD.fullmatch(value):
            yield ast.Constant(value + "_")
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await()):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
            yield ast.Pass()
