"""Text of other peers in the log, in file names and in the labels of metrics."""

from __future__ import annotations

import ast
import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

import dms_peer
import dms_protocols
from dms_peer.telemetry.logs import EventLine, show_warnings
from dms_peer.telemetry.metrics import PeerCollector
from dms_protocols.queries import resource_operations
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.operations import Caller
from dms_protocols.rpc.service import serve_stream
from dms_protocols.wire.cbor import encode_fast
from dms_protocols.wire.frames import encode_frame
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores
from hostile_text import HOSTILE

EVIL = "".join(HOSTILE)
# A lone surrogate cannot be sent: it is not UTF-8.
SENT = EVIL.replace("\ud800", "")
PEER, PROTOCOLS = Path(dms_peer.__file__).parent, Path(dms_protocols.__file__).parent


# The log


def record(message: str, *values: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord(EVIL, logging.WARNING, "file.py", 1, message, values, None)
    made.fields = fields
    return made


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
@pytest.mark.parametrize("text", [*HOSTILE, EVIL], ids=ascii)
def test_a_line_of_the_log_is_plain_ascii_wherever_the_text_is(text: str, as_json: bool) -> None:
    formatter = EventLine(as_json=as_json)
    records = (
        record(text),
        record("%s", text),
        record("%r", RuntimeError(text)),
        record("refused", peer=text, op=text, trace=text),
    )
    for made in records:
        line = formatter.format(made)
        assert line.isascii()
        assert line.isprintable(), ascii(line)
        if as_json:
            assert json.loads(line)["level"] == "warning"


@pytest.mark.parametrize("text", [*HOSTILE, EVIL], ids=ascii)
def test_a_warning_of_a_command_is_one_printable_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        show_warnings()
        logging.getLogger("dms_peer.test").warning("a bootstrap peer is not there: %s", text)
        line = capsys.readouterr().err
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
    assert line.endswith("\n")
    assert line[:-1].isprintable(), ascii(line)


def test_only_one_module_writes_the_log() -> None:
    """A handler of any other module would write what peers say as it is."""
    found = [
        f"{path.relative_to(PEER.parent)}:{node.lineno}"
        for path in PEER.rglob("*.py")
        if path.name != "logs.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.search(r"basicConfig$|StreamHandler$|addHandler$", ast.unparse(node.func))
    ]
    assert found == []


# File names

# What reads or writes messages of other peers. None of it names a file, but for these, whose names are the home's.
STRANGERS_REACH = (PROTOCOLS, PEER / "requesting", PEER / "discovery", PEER / "connections")
NAMED_BY_THE_HOME = {"peers_file.py"}
NAMES_A_FILE = re.compile(
    r"^(?:open|Path|os\.(?:open|mkdir|rename|replace|link|symlink|unlink)|write_private|tempfile\..*)$"
    r"|\.(?:write_text|write_bytes|mkdir|touch|with_name|joinpath|rename|unlink|symlink_to)$"
)


def test_no_message_names_a_file() -> None:
    found = [
        f"{path.relative_to(folder.parent)}:{node.lineno}: {ast.unparse(node.func)}"
        for folder in STRANGERS_REACH
        for path in folder.rglob("*.py")
        if path.name not in NAMED_BY_THE_HOME
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and NAMES_A_FILE.search(ast.unparse(node.func))
    ]
    assert found == []


# Metrics

PLAIN_LABEL = re.compile(r"[a-z0-9_.+]+", re.IGNORECASE)
MACHINE = MachineResources(
    cpu=CPU(cores=Cores(2000), model=SENT), ram=RAM(size=4 * GIB), disk=Disk(size=4 * GIB),
    gpus=(GPU(uuid=SENT, model=SENT, vram=GIB),),
)  # fmt: skip


async def test_no_label_of_a_metric_is_what_a_peer_wrote(tmp_path: Path) -> None:
    counts = ServiceCounts()
    async with open_manager(tmp_path / "ledger.db", MACHINE) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
        )
        await serve_evil(resource_operations(manager), counts)
        collector = PeerCollector(manager, counts, connections=lambda: 1, limits_hit={"streams": 1}, version="1")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        text = generate_latest(registry).decode()
    assert {operation for operation, _ in counts.requests} == {"unreadable", "free"}
    labels = [
        label
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for label in sample.labels.values()
    ]
    assert len(labels) > 20
    assert [label for label in labels if not PLAIN_LABEL.fullmatch(label)] == []


async def serve_evil(operations: Any, counts: ServiceCounts) -> None:
    """Requests with hostile text in each place that a request has for text."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_stream, theirs, operations, Caller(SENT), counts=counts))
        requests = (
            {"id": 1, "op": SENT},
            {"id": 2, "op": "free", "trace": SENT},
            {"id": 3, "op": "free", SENT: SENT},
            {"id": SENT, "op": "free"},
        )
        for request in requests:
            await ours.send_all(encode_frame(encode_fast(request)))
        await ours.send_eof()
        while await ours.receive_some():
            pass
