"""Command lines made from the commands' own declarations: options and arguments with values, good ones and bad ones.

A value's kind is its metavar. Some lines are as a person would write them; in others words are hostile, missing, too
many or damaged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import typer

from dms_peer.cli.app import command_app

__all__ = ["HOSTILE", "Command", "Values", "command_lines", "commands"]

_LONG: Final = "9" * 5000
HOSTILE: Final = (
    "", " ", "-", "--", "-1", "-0", "0", "1", "0x10", "1_000", "007", "nan", "inf", "-inf", "1e400", "1e-400", "1e18",
    "0.0001", "9223372036854775807", "9223372036854775808", "18446744073709551616", "-9223372036854775809", _LONG,
    f"{_LONG}GiB", f"{_LONG}h", f"0.{_LONG}", "1" * 400, "\uff11\uff12", "\u0661GiB", "\u00bd", "\u00b2", "NaNGiB",
    "1GiB2", "GiB", "4 GiB", "1e400GiB", "99999999999d", "1e10d", "-5m", "5mm", "\x1b[31mred", "[/nope]", "[link=x]y",
    "\u202egnp.exe", "\udcff", "a\udc80b", "\u0301" * 50, "\n", "a\r\nb", "\t", "%s", "{0}", "${HOME}", "~", "*",
    "é" * 300, "x" * 9999, "/", "//", "a/b/c/d", "a:b:c", ":", "::", "0:", ":8GiB", "None", "true", "null", "[]", "{}",
    "@x", "=", "a=b", "--home", "--json", "-h", "\U0001f600",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command: its words, its options (names, kind, whether a flag), and the kinds of its arguments."""

    words: tuple[str, ...]
    options: tuple[tuple[tuple[str, ...], str, bool], ...]
    arguments: tuple[str, ...]


def commands() -> list[Command]:
    """Every command that `dms-peer` has, as its own declarations say."""
    return list(_commands(typer.main.get_command(command_app()), ()))


def _commands(group: Any, words: tuple[str, ...]) -> Iterator[Command]:
    for name, command in group.commands.items():
        own = (*words, name)
        if hasattr(command, "commands"):
            yield from _commands(command, own)
            continue
        options, arguments = [], []
        for parameter in command.params:
            kind = str(parameter.metavar or parameter.name)
            if parameter.param_type_name == "argument":
                arguments.append(kind)
            else:
                names = (*parameter.opts, *parameter.secondary_opts)
                options.append((names, kind, bool(parameter.is_flag)))
        yield Command(own, tuple(options), tuple(arguments))


@dataclass(frozen=True)
class Values:
    """Valid words by kind, for a world of files, homes and peers."""

    homes: Sequence[str]
    addresses: Sequence[str]
    peer_ids: Sequence[str]
    leases: Sequence[str]
    files: Sequence[str]
    outputs: Sequence[str]

    def of(self, kind: str, option: str) -> Sequence[str]:
        """Words that this kind of value may be."""
        match kind:
            case "DIR":
                return self.homes
            case "PEER" | "[PEER]" | "PEER_ID":
                return (*self.addresses, *self.peer_ids, *(peer_id[:14] for peer_id in self.peer_ids))
            case "MULTIADDR":
                return self.addresses
            case "[LEASE]..." | "[PEER] LEASE" | "GRANT_ID":
                return (*self.leases, *self.addresses)
            case "FILE" if option in ("-o", "--output"):
                return self.outputs
            case "FILE" | "[FILE]" | "BID" | "TOKEN":
                return self.files
            case "[-- COMMAND ...]":
                return ("--", "true", "false")
        return _WORDS.get(kind, _ANY)


_SIZES: Final = ("0", "1", "1GiB", "512MiB", "100 MB", "1TiB", "4096", "64GiB")
_TIMES: Final = ("0", "0.2", "1", "60", "60s", "5m", "2h", "30d", "2026-12-24", "2099-01-01T10:00", "now", "31d")
_WORDS: Final[dict[str, Sequence[str]]] = {
    "CORES": ("0", "1", "2", "0.5", "0.001", "64", "all"),
    "SIZE": _SIZES,
    "VRAM": _SIZES,
    "GPU": ("all", "none", "0", "1", "0:8GiB", "GPU-a", "GPU-a:1GiB", "GPU-x"),
    "FIRST-LAST": ("20000-20999", "1-65535", "80", "65535-65535"),
    "SECONDS": ("0", "1", "30", "60", "3600"),
    "PERCENT": ("0", "10", "50", "100", "10%"),
    "TIME": _TIMES,
    "DURATION": _TIMES,
    "NUMBER": ("0", "1", "2", "1000"),
    "N": ("0", "1", "2", "5", "64"),
    "PORT": ("1", "80", "20000", "65535"),
    "[HOST:]PORT": ("0", "127.0.0.1:0", "localhost:0", "[::1]:0"),
    "RANGE": ("10.0.0.0/8", "127.0.0.1", "::/0", "fe80::/10"),
    "NAME": ("docker", "commit", "bid", "cheapest", "spread", "pack", "USD", "EUR"),
    "PLACE": ("Europe", "Europe/DE", "Europe/DE/Berlin", "/DE"),
    "TEXT": ("maintenance", "a note"),
    "SHELL": ("bash", "zsh", "fish"),
    "color": ("auto", "always", "never"),
    "guard": ("off", "warn", "enforce"),
    "log_level": ("debug", "info", "warning", "error"),
    "window": ("22:00-06:00", "sat,sun", "mon-fri 18:00-08:00", "until 2099-01-01"),
    "sample_interval": ("0.5", "5", "3600"),
    "limit": ("0", "1", "10", "1000"),
    "count": ("1", "2"),
}
_ANY: Final = ("1", "a", "all")


def command_lines(values: Values, dice: random.Random) -> Iterator[list[str]]:
    """Command lines without an end; the same dice give the same lines."""
    known = commands()
    while True:
        yield _command_line(dice.choice(known), values, dice)


def _command_line(command: Command, values: Values, dice: random.Random) -> list[str]:
    hostile = dice.choice((0.0, 0.0, 0.1, 0.5))

    def word(kind: str, option: str = "") -> str:
        if dice.random() < hostile:
            return dice.choice(HOSTILE)
        chosen = dice.choice(values.of(kind, option))
        return _damaged(chosen, dice) if dice.random() < hostile / 2 else chosen

    line = [*_arguments(command, word, dice)]
    share = dice.choice((0.05, 0.15, 0.4))
    for names, kind, is_flag in command.options:
        likely = {"--home": 0.9, "--json": 0.5, "--debug": 0.05}.get(names[-1], share)
        while dice.random() < likely:
            name, likely = dice.choice(names), share / 2
            given = [name] if is_flag else _joined(name, word(kind, name), dice)
            place = dice.randrange(len(line) + 1) if "--" not in line else 0
            line[place:place] = given
    if dice.random() < hostile / 4:
        line.insert(dice.randrange(len(line) + 1), dice.choice((*HOSTILE, "--unknown", "--version", "--help")))
    if line and dice.random() < hostile / 4:
        del line[dice.randrange(len(line))]
    words = list(command.words)
    if dice.random() < hostile / 20:
        words[dice.randrange(len(words))] = dice.choice(HOSTILE)
    return [*words, *line]


def _arguments(command: Command, word: Callable[..., str], dice: random.Random) -> Iterator[str]:
    for kind in command.arguments:
        several = "..." in kind or " " in kind or kind == "GRANT_ID"
        for _ in range(dice.choice((0, 1, 1, 2, 3) if several else (0, 1, 1, 1, 1, 1, 1, 2))):
            yield word(kind)


def _joined(name: str, value: str, dice: random.Random) -> list[str]:
    return [f"{name}={value}"] if name.startswith("--") and dice.random() < 0.2 else [name, value]


def _damaged(text: str, dice: random.Random) -> str:
    """The text with a character more, less or another one."""
    place = dice.randrange(len(text) + 1)
    other = dice.choice(("", "0", "9" * 30, "-", ".", "/", ":", "\x1b", "é", " ", "e9", "\u0663", "_"))
    return text[:place] + other + text[place + dice.randrange(2) :]
