"""Runs command lines that are made from the commands' own declarations; whatever they are, only coded errors may come.

    python tests/fuzzing/command_lines.py --inputs 100000 --seed 1 [--workers 2]

Each runs in a fork of a process that has loaded `dms-peer`: no import is paid for, and nothing of it is left in the
next one. A command that goes on after a quarter of a second is interrupted, as with Ctrl-C, and has to end. Some homes
are new, some offer a machine, one has a running peer, some are broken. A command line fails when it prints a traceback
or an unexpected failure, steers the terminal, ends with an unknown exit code, or does not end. The command ends with 1
when one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import json
import os
import random
import re
import resource
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / package) for package in ("peer", "protocols", "resources")]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from dms_fuzzing.command_lines import Values, command_lines  # noqa: E402 - behind the path
from dms_host.keys.identity import new_identity  # noqa: E402 - behind the path
from dms_peer.__main__ import run_command  # noqa: E402 - behind the path

MACHINE = {
    "cpu": {"cores": 8},
    "ram": {"size": "32GiB"},
    "disk": {"size": "500GiB"},
    "gpus": [{"uuid": "GPU-a", "vram": "24GiB"}],
}
# Seconds after which a command is interrupted, and after which one that was is taken for stuck.
INTERRUPT_AFTER, STUCK_AFTER = 0.25, 30.0
# Without an event loop, whose threads a fork would miss.
WITHOUT_LOOP = (
    ["config", "show"], ["config", "check", "--json"], ["config", "init", "made.yaml"], ["token", "inspect", "token"],
    ["completion", "bash"], ["token", "revoke", "--home", "offering"], ["status", "--home", "missing"], ["bid", "x"],
)  # fmt: skip
EXIT_CODES = {0, 1, 2, 3, 128 + signal.SIGINT}
# What may steer a terminal, but for the colors that --color always asks for.
COLORS = re.compile(rb"\x1b\[[0-9;]*m")
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def main() -> int:
    """Runs the command lines; 0 when none failed."""
    options = _options()
    # The running peer ends with this process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        os.environ.update(HOME=scratch, XDG_DATA_HOME=scratch, XDG_CONFIG_HOME=scratch, DMS_HOME=f"{scratch}/default")
        for name in ("NO_COLOR", "FORCE_COLOR", "DMS_PEER_LISTEN"):
            os.environ.pop(name, None)
        with _world(Path(scratch)) as values:
            _load_for_forks(values, options.teaching)
            shares = [options.inputs // options.workers] * options.workers
            shares[0] += options.inputs % options.workers
            children = [_child(values, options.seed + number, share) for number, share in enumerate(shares)]
            try:
                return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
            except SystemExit:
                for child in children:
                    os.kill(child, signal.SIGKILL)
                raise


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="number of command lines (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same command lines (default: 0)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that run them, seed and following (default: 1)"
    )
    parser.add_argument("--teaching", type=int, default=150, help="command lines that show what to load (default: 150)")
    return parser.parse_args()


def _load_for_forks(values: Values, number: int) -> None:
    """Imports what so many command lines import, so that later forks have it already."""
    read, write = os.pipe()
    teacher = os.fork()
    if not teacher:
        os.close(read)
        learned: set[str] = set()
        try:
            for line in islice(command_lines(values, random.Random(0)), number):
                with tempfile.NamedTemporaryFile("w+") as names:
                    _run(line, patience=INTERRUPT_AFTER, modules=names.name)
                    learned.update(names.read().split())
            os.write(write, " ".join(learned - set(sys.modules)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as names:
        for name in sorted(names.read().split()):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    os.waitpid(teacher, 0)
    for line in WITHOUT_LOOP:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run_command(line)
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _world(scratch: Path) -> Iterator[Values]:
    """Homes, files and a running peer that the command lines name."""
    (scratch / "machine.json").write_text(json.dumps(MACHINE))
    (scratch / "broken.json").write_text('{"cpu": {"cores": "many"')
    (scratch / "ensemble.yaml").write_text("nodes: {a: {cpu: 1, ram: 1GiB, disk: 1GiB}, b: {cpu: 2}}\n")
    (scratch / "broken.yaml").write_text("nodes: [1, {\n")
    (scratch / "deep.yaml").write_text("[" * 5000)
    (scratch / "terms.yaml").write_text("prices: {cpu: 1}\n")
    (scratch / "octets").write_bytes(bytes(range(256)) * 10)
    (scratch / "empty").touch()
    (scratch / "folder").mkdir()
    (scratch / "wide").mkdir()
    (scratch / "wide").chmod(0o777)
    for home in ("offering", "running"):
        _must("onboard", "--home", home, "--machine", "machine.json", "--cpu", "4", "--ram", "8GiB", "--disk", "50GiB")
    _must("token", "create", "--home", "offering", "--for", "7d", "-o", "token")
    listening = ["--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns", "--json"]
    peer = subprocess.Popen(
        [sys.executable, "-m", "dms_peer", "run", "--home", "running", *listening],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert peer.stdout is not None
        ready = json.loads(peer.stdout.readline())
        address = ready["addrs"][0]
        _must("bid", address, "--home", "offering", "--cpu", "1", "--ram", "1GiB", "--disk", "1GiB", "-o", "bid.cbor")
        yield _values(address, ready["peer_id"])
        if peer.poll() is not None:
            raise SystemExit("the running peer has ended")
        peer.send_signal(signal.SIGTERM)
        peer.wait(60)
        _must("audit", "--home", "running")
    finally:
        peer.kill()
        peer.wait()


def _values(address: str, peer_id: str) -> Values:
    absent = new_identity().peer_id
    # A name that is not UTF-8 arrives as Python escapes it.
    homes = (
        "offering",
        "offering",
        "running",
        "running",
        "fresh",
        "folder",
        "wide",
        "empty",
        "missing/deep",
        "h\udcff",
    )
    files = (
        "machine.json", "broken.json", "ensemble.yaml", "broken.yaml", "deep.yaml", "terms.yaml", "octets", "empty",
        "folder", "token", "bid.cbor", "missing", "/dev/null", "measured",
    )  # fmt: skip
    return Values(
        homes=homes,
        addresses=(
            address, address, f"/ip4/127.0.0.1/tcp/1/p2p/{absent}", "/ip4/127.0.0.1/tcp/0",
            f"/ip6/::1/tcp/1/p2p/{absent}", f"/ip4/127.0.0.1/udp/1/quic-v1/p2p/{absent}",
            "/ip4/999.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/65536", "/ip6zone/x",
        ),
        peer_ids=(peer_id, absent, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"),
        leases=("0" * 32, "a", "0a1b2c", "z" * 32, "f" * 64),
        files=files,
        outputs=("written", "folder", "missing/file", "/dev/full", "/dev/null", "token"),
    )  # fmt: skip


def _must(*arguments: str) -> None:
    code, out, err, _ = _run(arguments, patience=STUCK_AFTER)
    if code != 0:
        raise SystemExit(f"{shlex.join(arguments)} has failed: {out + err}")


def _child(values: Values, seed: int, inputs: int) -> int:
    """Forks a process that runs so many command lines; returns its id."""
    child = os.fork()
    if child:
        return child
    failed = 1
    try:
        failed = _run_all(values, seed, inputs)
    finally:
        sys.stdout.flush()
        os._exit(min(failed, 1))


def _run_all(values: Values, seed: int, inputs: int) -> int:
    began, failed, codes = time.monotonic(), 0, Counter[str]()
    for number, line in enumerate(islice(command_lines(values, random.Random(seed)), inputs), 1):
        code, out, err, in_time = _run(line, patience=INTERRUPT_AFTER)
        wrong = _wrong(line, code, out, err)
        if wrong:
            failed += 1
            print(f"seed {seed}, line {number}: {wrong}\n  {shlex.join(line)!r}\n  {(out + err)[-1500:]!r}", flush=True)
        codes[f"{code}{'' if in_time else ' (interrupted)'}"] += 1
        if number % 5000 == 0:
            print(
                f"seed {seed}: {number:,} command lines, {failed} failed, {time.monotonic() - began:.0f} s", flush=True
            )
    ended = ", ".join(f"{count:,} with {code}" for code, count in codes.most_common())
    print(f"seed {seed}: {inputs:,} command lines, {failed} failed, {time.monotonic() - began:.0f} s; ended: {ended}")
    return failed


def _run(arguments: Sequence[str], *, patience: float, modules: str = "") -> tuple[int, bytes, bytes, bool]:
    """The exit code, what was printed, and whether the command ended by itself; -9 for one that was stuck.

    The names of all modules that are loaded at the end are written to the file `modules`, where there is one.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            _become(arguments, out.fileno(), err.fileno(), modules)
        descriptor = os.pidfd_open(child)
        try:
            in_time = _ended(descriptor, patience)
            if not in_time:
                os.kill(child, signal.SIGINT)
                if not _ended(descriptor, STUCK_AFTER):
                    os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            os.close(descriptor)
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read(), in_time


def _ended(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


def _become(arguments: Sequence[str], out: int, err: int, modules: str) -> None:
    """Turns this fork into the command; never returns."""
    code: Any = 70
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        # Output that a command repeats for ever fills no disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, 2**26))
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, encoding="utf-8", errors=errors, closefd=False)
            for number, mode, errors in ((0, "r", "strict"), (1, "w", "replace"), (2, "w", "backslashreplace"))
        )
        code = run_command(arguments)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            if modules:
                Path(modules).write_text(" ".join(sys.modules))
        os._exit(code if isinstance(code, int) else 71)


def _wrong(line: Sequence[str], code: int, out: bytes, err: bytes) -> str:
    """What is wrong with how a command line ended; empty when nothing is."""
    printed = out + err
    if code not in EXIT_CODES:
        return "it did not end" if code == -signal.SIGKILL else f"exit code {code}"
    if b"unexpected failure" in printed or b'"code":"internal"' in out:
        return "unexpected failure"
    if b"Traceback (most recent call last)" in printed and "--debug" not in line:
        return "traceback"
    if code == 2 and not err.startswith(b"dms-peer: ") and "--debug" not in line:
        return "no line says what is wrong"
    # JSON carries all text but control characters as it is.
    shown = COLORS.sub(b"", err if "--json" in line else printed).decode("utf-8", "replace")
    if STEERING.search(shown) and "--debug" not in line:
        return "steers the terminal"
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
