"""Recorded machines, and a library in place of NVIDIA's.

One text file describes the `/proc`, `/sys` and `/dev` of a machine: `== PATH` begins a file, `== PATH -> TARGET` makes
a link, `[A-B]` in a path makes one file for each number `n`, and `@repeat A-B` … `@end` repeats lines. `{n}`, `{n+8}`,
`{n-8}`, `{n%8}` and `{n//8}` in the content are computed.
"""

from __future__ import annotations

import operator
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dms_resources.machine.hardware import Roots

_FOLDER = Path(__file__).parent
_RANGE = re.compile(r"\[(\d+)-(\d+)\]")
_REPEAT = re.compile(r"^@repeat (\d+)-(\d+)\n(.*?)^@end\n", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r"\{n(?:(\+|-|%|//)(\d+))?\}")
_OPERATORS = {"+": operator.add, "-": operator.sub, "%": operator.mod, "//": operator.floordiv}


def _compute(text: str, n: int) -> str:
    return _FORMULA.sub(lambda found: str(_OPERATORS[found[1]](n, int(found[2])) if found[1] else n), text)


def _repeat(found: re.Match[str]) -> str:
    return "".join(_compute(found[3], n) for n in range(int(found[1]), int(found[2]) + 1))


def _files(description: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^== ", description, flags=re.MULTILINE)[1:]:
        heading, _, content = part.partition("\n")
        numbers = _RANGE.search(heading)
        for n in range(int(numbers[1]), int(numbers[2]) + 1) if numbers else [0]:
            path = _RANGE.sub(str(n), heading, count=1) if numbers else heading
            yield path, _compute(_REPEAT.sub(_repeat, content), n)


def _build(description: str, folder: Path) -> Roots:
    for heading, content in _files(description):
        path, arrow, target = heading.partition(" -> ")
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if arrow:
            place.symlink_to(target)
        else:
            place.write_text(content, encoding="utf-8")
    dev = folder / "dev"
    return Roots(proc=folder / "proc", sys=folder / "sys", dev=dev if dev.is_dir() else None)


@pytest.fixture
def build_machine(tmp_path: Path) -> Callable[[str], Roots]:
    """Builds a recorded machine by its name, or one from a description, below `tmp_path`."""

    def build(machine: str) -> Roots:
        description = machine if "==" in machine else (_FOLDER / "machines" / f"{machine}.txt").read_text("utf-8")
        return _build(description, tmp_path / "machine")

    return build


@pytest.fixture
def build_into() -> Callable[[str, Path], Roots]:
    """Builds a machine from a description in a folder."""
    return _build


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `libnvidia-ml.so.1` that does what the environment says."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("the fake NVML library needs a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    library = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(folder / "libnvidia-ml.so.1")]
    subprocess.run([compiler, *library, str(_FOLDER / "fake_nvml.c")], check=True)
    return folder


@pytest.fixture
def fake_nvml(nvml_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts the fake library in place of NVIDIA's. From each call on it behaves as told: `fake_nvml(devices=8)`."""
    control = tmp_path / "nvml.control"
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_folder))
    monkeypatch.setenv("FAKE_NVML_CONTROL", str(control))

    def behave(**behaviour: object) -> None:
        lines = "".join(f"FAKE_NVML_{name.upper()}={value}\n" for name, value in behaviour.items())
        # In one step, because a process may be reading it.
        control.with_suffix(".new").write_text(lines)
        control.with_suffix(".new").replace(control)

    return behave
