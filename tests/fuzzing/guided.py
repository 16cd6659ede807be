"""Fuzzing guided by coverage (atheris, the extra `fuzz`): inputs that reach new code are kept and changed further.

    python tests/fuzzing/guided.py cbor -runs=1000000 [any other option of libFuzzer]

Interesting inputs are kept beside this file in `corpus/TARGET`, and used again. Exits with 0 if all runs were clean. A
failed input is written to the working directory as `crash-...`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dms_peer", "dms_protocols", "dms_resources"]):
    from dms_fuzzing.corpus import corpus
    from dms_fuzzing.parsers import PARSERS


def main() -> None:
    """Never returns, because libFuzzer ends the process."""
    if len(sys.argv) < 2 or sys.argv[1] not in PARSERS:
        raise SystemExit(f"usage: guided.py {{{','.join(PARSERS)}}} [-runs=N] [libFuzzer options]")
    target = sys.argv.pop(1)
    seeds = Path(__file__).with_name("corpus") / target
    seeds.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(corpus(target)):
        (seeds / f"seed-{number}").write_bytes(data)
    atheris.Setup([*sys.argv, "-rss_limit_mb=1024", "-max_len=16384", str(seeds)], PARSERS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
