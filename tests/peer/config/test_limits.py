"""The limits file: read exactly, refused with line and field, and all limits on one page."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_peer.config.limits import PeerLimits, parse_limits, read_limits_file
from dms_peer.errors import DocumentError

ROOT = Path(__file__).parents[3]


def test_what_is_left_out_has_its_default() -> None:
    limits = parse_limits(
        b"host: {max_inbound_connections: 128, frame_timeout: 5s}\n"
        b"service: {frame_bytes: 32KiB, idle_deadline: 2m}\ngossip: {peer_messages: 0.5}\n",
        "limits.yaml",
    )
    usual = PeerLimits()
    assert limits.host == dataclasses.replace(usual.host, max_inbound_connections=128, frame_timeout=5.0)
    assert limits.service == dataclasses.replace(usual.service, frame_bytes=32 * 1024, idle_deadline=120.0)
    assert limits.gossip == dataclasses.replace(usual.gossip, peer_messages=0.5)
    assert (limits.relay, limits.connections) == (usual.relay, usual.connections)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hosts: {}", "line 1, column 1: hosts: unknown field"),
        (b"host: {max_conections: 1}", "max_connections"),
        (b"host: {max_connections: 0}", "is not a whole number from 1"),
        (b"host:\n  frame_timeout: soon", "line 2, column 18: host.frame_timeout"),
        (b"host: {max_connections: 10, max_inbound_connections: 20}", "max_inbound_connections must not exceed"),
        (b"service: {frame_bytes: many}", "service.frame_bytes"),
        (b"host: {max_connections: 1.5}", "is not a whole number"),
        (b"- 1", "must be a mapping"),
    ],
)
def test_nonsense_is_named(content: bytes, said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_limits(content, "limits.yaml")
    assert said in str(caught.value)
    assert caught.value.code == "bad_limits"


@given(content=st.binary(max_size=200))
def test_nothing_else_is_raised(content: bytes) -> None:
    with contextlib.suppress(DocumentError):
        parse_limits(content, "limits.yaml")


def written(name: str, value: float) -> str:
    return f"{value}B" if name.endswith("bytes") else str(value)


def test_every_limit_can_be_written(tmp_path: Path) -> None:
    lines = []
    for section in dataclasses.fields(PeerLimits()):
        lines.append(f"{section.name}:")
        values = getattr(PeerLimits(), section.name)
        lines += [
            f"  {field.name}: {written(field.name, getattr(values, field.name))}"
            for field in dataclasses.fields(values)
        ]
    file = tmp_path / "limits.yaml"
    file.write_text("\n".join(lines))
    assert read_limits_file(file) == PeerLimits()


def test_the_page_has_every_limit_as_it_is() -> None:
    # If this was intended: python tests/limits_page.py > docs/limits.md
    written = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "limits_page.py")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert written.stdout == (ROOT / "docs" / "limits.md").read_text()
    for section in dataclasses.fields(PeerLimits()):
        for field in dataclasses.fields(getattr(PeerLimits(), section.name)):
            assert f"| `{field.name}` |" in written.stdout
    rows = [line for line in written.stdout.splitlines() if line.startswith("| `")]
    texts = [row.split(" | ")[2] for row in rows if row.count(" | ") == 2]
    assert all(text.strip(" |") for text in texts), "every limit says what it bounds"
    sections = written.stdout.split("\n## ")
    for section in sections:
        texts = [line.split(" | ")[2] for line in section.splitlines() if line.startswith("| `")]
        assert len(texts) == len(set(texts)), "no two limits share a text"
