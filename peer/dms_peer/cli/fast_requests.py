"""`free`, `bid` and `discover` through a running peer, in their simplest form: they run without typer.

They accept the options of one node (--cpu, --ram, --disk, --gpu) and the few below. Every other command line, every
invalid value, and every home without a running peer, is left to the commands themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from dms_protocols.messages.bid import NodeRequest
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.errors import AmountError
from dms_resources.units import Cores, parse_duration, parse_size

from ..home.home import Home, home_at
from ..owner.socket_file import connect

__all__ = ["run_request"]

_FLAGS: Final = ("--json", "--debug", "--dry-run")
_VALUES: Final = ("--home", "--cpu", "--ram", "--disk", "--gpu", "--count", "--timeout", "-o", "--output")
_TIMEOUT: Final = 15.0


class _Words:
    """A parsed command line: the words that are not options, the flags, and the values by option."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.flags: set[str] = set()
        self.values: dict[str, list[str]] = {}

    def one(self, name: str) -> str | None:
        return self.values[name][-1] if name in self.values else None

    def only(self, *names: str) -> bool:
        return {*self.flags, *self.values} <= {*names, "--json", "--debug", "--home"}


def run_request(arguments: Sequence[str]) -> int | None:
    """The exit code of the command line if it is one of these; otherwise None, and nothing was done.

    Raises what the command raises.
    """
    command = _COMMANDS.get(arguments[0]) if arguments else None
    parsed = None if command is None else _parse(arguments[1:])
    if command is None or parsed is None:
        return None
    home = home_at(parsed.one("--home"))
    connection = connect(home.socket_path)
    if connection is None:
        return None
    connection.close()
    try:
        return command(home, parsed)
    except AmountError:
        # The command reports which option is invalid.
        return None


def _parse(words: Sequence[str]) -> _Words | None:
    parsed, left = _Words(), iter(words)
    for word in left:
        if word in _FLAGS:
            parsed.flags.add(word)
        elif word in _VALUES:
            value = next(left, "")
            if not value or value.startswith("-"):
                return None
            parsed.values.setdefault("-o" if word == "--output" else word, []).append(value)
        elif word.startswith("-"):
            return None
        else:
            parsed.words.append(word)
    return parsed


def _free(home: Home, parsed: _Words) -> int | None:
    if len(parsed.words) != 1 or not parsed.only():
        return None
    from .output import show_answer
    from .remote import ask_free
    from .tables.common import show_free

    show_answer("--json" in parsed.flags, show_free, ask_free(home, parsed.words[0]))
    return 0


def _bid(home: Home, parsed: _Words) -> int | None:
    needed = ("--cpu", "--ram", "--disk")
    if len(parsed.words) != 1 or not parsed.only(*needed, "--gpu", "--dry-run", "-o"):
        return None
    output, dry_run = parsed.one("-o"), "--dry-run" in parsed.flags
    if not parsed.values.keys() >= set(needed) or (dry_run and output is not None):
        return None
    node = _node(parsed)
    from .output import show_answer
    from .remote import ask_bid
    from .tables.bids import show_bid

    file = None if output is None else Path(output)
    report = ask_bid(home, parsed.words[0], node, dry_run=dry_run, hold=0.0, output=file)
    show_answer("--json" in parsed.flags, show_bid, report)
    return 0


def _discover(home: Home, parsed: _Words) -> int | None:
    if parsed.words or not parsed.only("--cpu", "--ram", "--disk", "--gpu", "--count", "--timeout"):
        return None
    text = parsed.one("--count")
    if not parsed.values.keys() & {"--cpu", "--ram", "--disk", "--gpu"} or (text and not text.isdecimal()):
        return None
    count, node = None if text is None else int(text), _node(parsed)
    timeout = _TIMEOUT if (asked := parsed.one("--timeout")) is None else parse_duration(asked)
    if count == 0 or timeout <= 0:
        return None
    from .output import print_json, show_answer
    from .peer_search import one_node, search_in_peer
    from .tables.search import search_view, show_found

    ensemble, as_json = one_node(node, timeout), "--json" in parsed.flags
    if as_json:
        found = search_in_peer(home, ensemble, count=count, timeout=timeout, tell=lambda row, progress: print_json(row))
    else:
        with search_view() as view:
            found = search_in_peer(home, ensemble, count=count, timeout=timeout, tell=view.found)
    if found is None:
        return None
    show_answer(as_json, show_found, found)
    return 0 if found.able >= (count or 1) else 3


def _node(parsed: _Words) -> NodeRequest:
    """The node from the options. Raises AmountError."""
    return NodeRequest(
        node_id="node",
        resources=Demand(
            cpu=CPUDemand(cores=Cores.of(parsed.one("--cpu") or "0")),
            ram=RAMDemand(size=parse_size(parsed.one("--ram") or "0")),
            disk=DiskDemand(size=parse_size(parsed.one("--disk") or "0")),
            gpus=tuple(GPUDemand(vram=parse_size(text)) for text in parsed.values.get("--gpu", ())),
        ),
    )


_COMMANDS: Final[dict[str, Callable[[Home, _Words], int | None]]] = {
    "free": _free,
    "bid": _bid,
    "discover": _discover,
}
