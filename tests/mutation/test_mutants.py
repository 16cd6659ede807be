"""The mutants themselves: each operator, what is left alone, the tests of a module, and the explanations."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dms_mutation.figures import BEGIN, END, PAGE, explanations, read_figures, render
from dms_mutation.mutants import mutants_of
from dms_mutation.nearest_tests import LAYERS, nearest_tests

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("source", "after"),
    [
        ("a < b", ["a <= b"]),
        ("a >= b", ["a > b"]),
        ("a == b != c", ["a != b != c", "a == b == c"]),
        ("a in b", ["a not in b"]),
        ("a is not None", ["a is None"]),
        ("hour * 60 + minute", ["hour * 60 - minute", "hour // 60", "61"]),
        ("a and b", ["a or b"]),
        ("not a", ["a"]),
        ("min(a, b)", ["max(a, b)", "pass"]),
        ("a if b else c", ["c if b else a"]),
        ("x = True", ["False"]),
        ("x = 1.5", ["2.5"]),
        ("x = 'bad_cbor'", ["'bad_cbor_'"]),
        ("def f():\n    return a", ["return None"]),
        ("forget(a)", ["pass"]),
        ("self.a = b", ["pass"]),
        ("a += b", ["pass"]),
        ("raise error", ["pass"]),
        ("if found:\n    a", ["not found"]),
    ],
)
def test_each_operator(source: str, after: list[str]) -> None:
    # An expression stands in parentheses, whatever is around it.
    found = [mutant.after[1:-1] if mutant.after.startswith("(") else mutant.after for mutant in mutants_of(source)]
    assert sorted(found) == sorted(after)


def test_what_the_running_program_does_not_use_is_left_alone() -> None:
    lines = [
        '"""Text."""',
        '__all__ = ["name"]',
        'x: Literal["a"]',
        "if TYPE_CHECKING:",
        "    y = 1",
        '_log.info("event")',
    ]
    assert mutants_of("\n".join([*lines, 'z = f"{1}"', "x = 'Two words.'"])) == []


def test_a_mutant_differs_from_its_module_in_one_place_and_can_be_read() -> None:
    for layer in LAYERS.values():
        for module in layer.modules(ROOT)[3::25]:
            source = (ROOT / module).read_text()
            for mutant in mutants_of(source):
                ast.parse(mutant.source)
                unchanged = source.encode().replace(mutant.before.encode(), b"", 1)
                assert len(mutant.source.encode()) - len(mutant.after.encode()) == len(unchanged), module


def test_the_tests_of_a_module_begin_with_its_own() -> None:
    layer, windows = LAYERS["resources"], Path("resources/dms_resources/ledger/windows.py")
    seconds = {"tests/resources/ledger/test_book.py": 60.0, "tests/resources/ledger/test_windows.py": 1.0}
    own, near = nearest_tests(windows, layer, ROOT, seconds)
    assert own == ["tests/resources/ledger/test_windows.py"]
    assert near[0].startswith("tests/resources/ledger/")
    assert "tests/resources/test_units.py" in near
    assert near[-1] == "tests/resources/ledger/test_book.py"
    assert not set(own) & set(near)


def test_every_explanation_is_of_a_mutant_that_there_is() -> None:
    for one in explanations():
        source = (ROOT / one.module).read_text()
        places = {
            (source.splitlines()[mutant.line - 1].strip(), mutant.before, mutant.after) for mutant in mutants_of(source)
        }
        assert (one.text, one.before, one.after) in places, one
        assert len(one.why) > 20


def test_the_page_shows_the_figures() -> None:
    assert BEGIN + render(read_figures()) + END in PAGE.read_text()
