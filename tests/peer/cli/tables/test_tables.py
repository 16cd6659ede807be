"""Tables: drawn on a terminal, plain in a pipe, and never controlled by what they show."""

from __future__ import annotations

import io

import pytest

from dms_peer.cli.tables.common import capacity_rows, short_ids
from dms_peer.cli.tables.layout import Column, show_table
from dms_peer.cli.tables.machine import show_hardware
from dms_resources.components import (
    CPU,
    GPU,
    RAM,
    Disk,
    MachineResources,
    NetworkInfo,
    NetworkInterface,
    Resources,
)
from dms_resources.units import GIB, Cores

SMALL = Resources(cpu=CPU(cores=Cores.of("0.5")), ram=RAM(size=GIB), disk=Disk(size=0), gpus=())
LARGE = Resources(
    cpu=CPU(cores=Cores.of(8)),
    ram=RAM(size=2 * GIB),
    disk=Disk(size=GIB),
    gpus=(GPU(uuid="GPU-a", model="Example", vram=24 * GIB),),
)


class Terminal(io.StringIO):
    """A terminal, as far as a table can detect."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [Terminal(), io.StringIO()], ids=["terminal", "pipe"])
def test_nothing_is_cut_off(out: io.StringIO) -> None:
    peer_id = "12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"
    show_table("title", ["a", "b"], [[peer_id, "1 GiB"], ["short", "2"]], out)
    text = out.getvalue()
    assert peer_id in text
    assert "…" not in text
    assert ("\x1b[1mtitle" in text) == out.isatty(), "a title is bold on a terminal"


def test_no_color_and_force_color(monkeypatch: pytest.MonkeyPatch) -> None:
    for out, variables, bold in (
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ):
        with monkeypatch.context() as patched:
            for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
                patched.delenv(name, raising=False)
            for name, value in variables.items():
                patched.setenv(name, value)
            show_table("title", ["a"], [["b"]], out)
        assert ("\x1b" in out.getvalue()) == bold


def test_amounts_stand_on_the_right_and_text_on_the_left_under_headings() -> None:
    out = io.StringIO()
    show_table("t", ["name", "size", "note"], [["a", "1 GiB", "x"], ["long", "12.5 GiB", "yes"]], out)
    assert out.getvalue().splitlines() == [
        "t",
        "  name      size  note",
        "  a        1 GiB  x",
        "  long  12.5 GiB  yes",
    ]


def test_the_lightest_columns_are_left_out_first_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [Column("id"), Column("light", 1), Column("heavy", 5), Column("middle", 3)]
    seen = []
    for width in (60, 40, 27, 20):
        monkeypatch.setenv("COLUMNS", str(width))
        out = io.StringIO()
        show_table("t", columns, [["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc", "dddddddddd"]], out)
        lines = out.getvalue().splitlines()
        assert all(len(line) <= width for line in lines[:3])
        seen.append((lines[1].split(), lines[3:]))
    left = "  (left out at this width: {})".format
    assert seen == [
        (["id", "light", "heavy", "middle"], []),
        (["id", "heavy", "middle"], [left("light")]),
        (["id", "heavy"], [left("light, middle")]),
        (["id"], [left("light, heavy, middle")]),
    ]


def test_sentences_are_folded_at_words_and_ids_only_where_nothing_else_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = io.StringIO()
    show_table("t", [Column("id"), Column("what", sentences=True)], [["a", "one two three " * 5 + "x" * 50]], out)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert lines[2:4] == ["  a   one two three one two three one", "      two three one two three one two"]
    assert "".join(out.getvalue().split()).count("x") == 50


def test_short_ids_tell_all_apart() -> None:
    assert short_ids(["0123456789ab", "fedcba987654", "0123456789ab"]) == ["01234567", "fedcba98", "01234567"]
    assert short_ids(["training-1", "training-2"]) == ["training-1", "training-2"]
    assert short_ids([]) == []


@pytest.mark.parametrize("out", [Terminal(), io.StringIO()], ids=["terminal", "pipe"])
def test_what_peers_say_is_shown_as_it_is(out: io.StringIO) -> None:
    show_table("title", ["a", "b"], [["[red]x[/red]", "\x1b[2Jnext\nline"]], out)
    text = out.getvalue()
    assert "[red]x[/red]" in text
    assert "\x1b[2J" not in text
    assert "next line" in text


def test_a_row_for_every_device_of_any_column() -> None:
    assert capacity_rows([SMALL, LARGE, None]) == [
        ["CPU cores", "0.5", "8", "-"],
        ["RAM", "1 GiB", "2 GiB", "-"],
        ["disk", "0 B", "1 GiB", "-"],
        ["GPU 0 Example", "-", "24 GiB", "-"],
    ]


def test_hardware_has_a_table_for_each_kind_and_says_what_limits_what(capsys: pytest.CaptureFixture[str]) -> None:
    machine = MachineResources(
        cpu=CPU(cores=Cores(2000), threads=64, physical_cores=32, model="Example", clock_speed=3_000_000_000),
        ram=RAM(size=4 * GIB),
        disk=Disk(size=10 * GIB, type="NVMe"),
        gpus=LARGE.gpus,
        network=NetworkInfo(interfaces=(NetworkInterface(name="eth0", type="ethernet", link_speed=10**9, up=True),)),
        limits=("2 of 64 cores: cgroup quota of /job",),
        problems=("the disk's model cannot be read",),
    )
    show_hardware(machine)
    text = capsys.readouterr().out
    for title in ("CPU", "memory", "disk", "GPUs", "network"):
        assert title in text.splitlines()
    for words in ("32 / 64", "3.0 GHz", "NVMe", "GPU-a", "1000 Mbit/s", "limit: 2 of 64 cores: cgroup quota of /job"):
        assert words in text
    assert "problem: the disk's model cannot be read" in text
