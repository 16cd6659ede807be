"""Changes the program in one place at a time, and looks whether the tests that belong to the module notice.

    python tests/mutation/run.py --mutants 200 --seed 7             # a sample over all layers
    python tests/mutation/run.py --only ledger/windows --mutants 0  # every mutant of one module
    python tests/mutation/run.py --mutants 200 --seed 8 --write     # keep the figures, and write docs/testing.md

A mutant that all tests pass is printed with its place. `same_program.json` explains those that do what the program
does. Each worker has a copy of the tree, so the working tree stays as it is. Ends with 1 when a survivor has no
explanation.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from dms_mutation.figures import FIGURES, Result, explained, read_figures, summary, update_figures, write_figures  # noqa: E402 - behind the path
from dms_mutation.mutants import Mutant, mutants_of  # noqa: E402 - behind the path
from dms_mutation.nearest_tests import LAYERS, Layer, nearest_tests  # noqa: E402 - behind the path

# The tests of a layer take so many times as long at most as without a mutation, and so many seconds more.
PATIENCE, MORE = 3.0, 120.0
# A single test that hangs ends the run; the slowest takes a fifth of it.
TEST_PATIENCE = 60
DURATION = re.compile(r"^([0-9.]+)s \w+ +([^:\n]+)::", re.MULTILINE)
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def main() -> int:
    """Tries the chosen mutants; 0 when every survivor is explained."""
    options = _options()
    mutants = list(_kept_survivors() if options.again else _sample(options))
    with tempfile.TemporaryDirectory() as scratch:
        copies = [_copy(Path(scratch) / str(number)) for number in range(options.workers)]
        layers = {
            layer: _without_mutation(copies[0], LAYERS[layer]) for layer in dict.fromkeys(one[0] for one in mutants)
        }
        results = _try_all(mutants, layers, copies)
    known = explained()
    for result in results:
        if not result.noticed:
            why = known.get(result.key, "no explanation")
            print(f"survived: {result.place}: {result.before} -> {result.after}: {why}")
    print(summary(results, known))
    if options.again:
        update_figures(results, known)
    elif options.write:
        write_figures(options.seed, results, known)
        print(f"written: {FIGURES.relative_to(ROOT)}")
    return 1 if any(not result.noticed and result.key not in known for result in results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=50, help="size of the sample; 0 takes all mutants (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed chooses the same mutants (default: 0)")
    parser.add_argument("--only", default="", help="only modules whose path contains this")
    parser.add_argument("--after", default="", help="only mutants whose new text contains this")
    parser.add_argument("--workers", type=int, default=2, help="number of mutants tried at once (default: 2)")
    parser.add_argument("--again", action="store_true", help="try the survivors that the figures name, and update them")
    parser.add_argument("--write", action="store_true", help="keep the figures in the repository")
    return parser.parse_args()


def _sample(options: argparse.Namespace) -> Iterator[tuple[str, Path, Mutant]]:
    every = [
        (name, module, mutant)
        for name, layer in LAYERS.items()
        for module in layer.modules(ROOT)
        if options.only in str(module)
        for mutant in mutants_of((ROOT / module).read_text())
        if options.after in mutant.after
    ]
    print(f"{len(every):,} mutants of {len({module for _, module, _ in every})} modules")
    yield from random.Random(options.seed).sample(every, options.mutants) if options.mutants else every


def _kept_survivors() -> Iterator[tuple[str, Path, Mutant]]:
    for survivor in read_figures().survivors:
        module, source = Path(survivor.module), (ROOT / survivor.module).read_text().splitlines()
        found = [
            mutant
            for mutant in mutants_of((ROOT / module).read_text())
            if (source[mutant.line - 1].strip(), mutant.before, mutant.after)
            == (survivor.text, survivor.before, survivor.after)
        ]
        if not found:
            raise SystemExit(f"{survivor.place} is not what it was: take a new sample")
        yield survivor.layer, module, min(found, key=lambda mutant: abs(mutant.line - survivor.line))


def _copy(where: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, where / name)
    return where


def _pytest(tree: Path, tests: list[str], patience: float, passed_over: tuple[str, ...] = ()) -> tuple[int, str]:
    """The exit code and the output; the code is -1 when the time was up."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(tree / package) for package in ("peer", "protocols", "resources")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    hang = ["-o", f"faulthandler_timeout={TEST_PATIENCE}", "-o", "faulthandler_exit_on_timeout=true"]
    chosen = [*tests, *(f"--deselect={test}" for test in passed_over), "-m", "not computes"]
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "--tb=no", *hang, *chosen]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [*command, "-x"] if patience else [*command, "--durations=0"],
            cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(patience or None)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            # What a test started and left behind ends with it.
            _end(process)
        output.seek(0)
        return code, output.read()


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return
    finally:
        process.wait()


@dataclass(frozen=True)
class Usual:
    """The tests of a layer without a mutation: the seconds of each file, and those that fail, which are left out."""

    seconds: dict[str, float]
    failing: tuple[str, ...]

    def patience(self, tests: list[str]) -> float:
        """The seconds that these may take."""
        return sum(self.seconds.get(name, 0.0) for name in tests) * PATIENCE + MORE


def _without_mutation(tree: Path, layer: Layer) -> Usual:
    code, output = _pytest(tree, [layer.tests, *layer.also], 0)
    if code not in (0, 1):
        raise SystemExit(f"{layer.tests} cannot be run:\n{output}")
    failing = tuple(FAILED.findall(output))
    for test in failing:
        print(f"fails without a mutation, and is left out: {test}")
    seconds: dict[str, float] = {}
    for took, name in DURATION.findall(output):
        seconds[name] = seconds.get(name, 0.0) + float(took)
    return Usual(seconds, failing)


def _try_all(mutants: list[tuple[str, Path, Mutant]], layers: dict[str, Usual], copies: list[Path]) -> list[Result]:
    waiting: queue.SimpleQueue[tuple[int, tuple[str, Path, Mutant]]] = queue.SimpleQueue()
    for numbered in enumerate(mutants):
        waiting.put(numbered)
    results: dict[int, Result] = {}

    def work(tree: Path) -> None:
        while True:
            try:
                number, (name, module, mutant) = waiting.get_nowait()
            except queue.Empty:
                return
            results[number] = result = _try(tree, name, module, mutant, layers[name])
            print(f"{len(results)}/{len(mutants)} {result.said}", flush=True)

    workers = [threading.Thread(target=work, args=(tree,), daemon=True) for tree in copies]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if len(results) < len(mutants):
        raise SystemExit("a worker failed")
    return [results[number] for number in sorted(results)]


def _try(tree: Path, name: str, module: Path, mutant: Mutant, usual: Usual) -> Result:
    original = (tree / module).read_text()
    (tree / module).write_text(mutant.source)
    code, output = 0, ""
    try:
        for tests in nearest_tests(module, LAYERS[name], tree, usual.seconds):
            if tests and code == 0:
                code, output = _pytest(tree, tests, usual.patience(tests), usual.failing)
    finally:
        (tree / module).write_text(original)
    if code in (4, 5):
        raise SystemExit(f"the tests of {module} cannot be run:\n{output}")
    noticed = FAILED.findall(output)
    by: Any = "" if code == 0 else noticed[0] if noticed else "no end" if code < 0 else f"exit code {code}"
    return Result(
        layer=name, module=str(module), line=mutant.line, text=original.splitlines()[mutant.line - 1].strip(),
        before=mutant.before, after=mutant.after, noticed=by,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
