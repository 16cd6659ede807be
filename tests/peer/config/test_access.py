"""The access file: the example in the docs, what is refused and where, and arbitrary bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dms_host.keys.identity import new_identity
from dms_peer.config.access import OPERATIONS, OUT_OF_THE_BOX, OwnerAccess, parse_access, read_access_file
from dms_peer.errors import DocumentError
from dms_peer.serving import peer_operations
from dms_protocols.jobs.service import job_operations
from dms_protocols.rpc.access import ANYONE, AccessRule, AccessRules
from dms_protocols.rpc.limits import Share, Shares
from dms_resources.components import CPU, RAM, Disk, MachineResources
from dms_resources.manager import open_manager
from dms_resources.units import Cores
from memory_jobs import MemoryJobs

DOCS = (Path(__file__).parents[3] / "docs" / "access.md").read_text()
EXAMPLE = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)[1]  # type: ignore[index]
LISTED = "12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"
OFFICE = "12D3KooWBaNnGphBxVkQNWkpqmpoh1GVUbXBKFSxAD96zaqdX4BK"


def test_the_file_in_the_docs_says_what_it_seems_to(tmp_path: Path) -> None:
    path = tmp_path / "access.yaml"
    path.write_text(EXAMPLE)
    usual = OUT_OF_THE_BOX
    assert read_access_file(path) == OwnerAccess(
        rules=AccessRules(
            operations={
                "machine": AccessRule(),
                "commit": AccessRule(peers=frozenset({LISTED}), token=True),
                "allocate": ANYONE,
            },
            others=ANYONE,
            trusted=(OFFICE,),
        ),
        shares=replace(
            usual,
            peer=replace(
                usual.peer, requests=100, requests_burst=200, bids=10, bids_burst=20, capacity=250, commitments=20,
                longest_ttl=43200.0,
            ),
            total=replace(usual.total, requests=2000, requests_burst=4000, bytes_in_flight=16 << 20),
            assured_requests=10,
        ),
    )  # fmt: skip


def test_the_docs_name_every_field_and_every_operation() -> None:
    for name in (*OPERATIONS, *Share.__struct_fields__, *Shares.__struct_fields__):
        assert f"`{name}`" in DOCS or f"{name}:" in DOCS, name


async def test_there_are_rules_for_every_operation_of_a_peer(tmp_path: Path, nursery: Any) -> None:
    parts: dict[str, Any] = {"cpu": CPU(cores=Cores.of(1)), "ram": RAM(size=1), "disk": Disk(size=1), "gpus": ()}
    async with open_manager(tmp_path / "ledger.db", MachineResources(**parts)) as manager:
        served = {name for operations in peer_operations(manager, new_identity()).values() for name in operations}
    # Only a peer with executors serves these.
    served |= {*job_operations(MemoryJobs({}, nursery, lambda job: None)), "tunnel"}
    assert served == set(OPERATIONS)


def test_one_line_changes_what_strangers_may_have() -> None:
    assert OwnerAccess().shares.stranger_capacity == 250
    found = parse_access(b"shares: {stranger_capacity: 1000}", "access.yaml")
    assert found == OwnerAccess(shares=replace(OUT_OF_THE_BOX, stranger_capacity=1000))
    found = parse_access(f"operations: {{commit: {{anyone: true, peers: [{LISTED}]}}}}".encode(), "access.yaml")
    assert found.rules.operations == {"commit": AccessRule(anyone=True, peers=frozenset({LISTED}))}


def test_an_empty_mapping_is_what_holds_without_one() -> None:
    assert parse_access(b"{}", "access.yaml") == OwnerAccess()


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("operations: {comit: token}", "operations.comit"),
        ("operations: {commit: somebody}", "operations.commit"),
        ("operations: {commit: {anyone: always}}", "operations.commit.anyone"),
        ("operations: {commit: {peers: [me]}}", "operations.commit.peers[0]"),
        ("operations: {commit: {token: maybe}}", "operations.commit.token"),
        ("others: [nobody]", "others"),
        ("trusted: [QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N]", "trusted[0]"),
        ("trusted: 12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG", "trusted"),
        ("shares: {peer: {requests: 0}}", "shares.peer.requests"),
        ("shares: {peer: {requests: 1.5}}", "shares.peer.requests"),
        ("shares: {peer: {capacity: 1001}}", "shares.peer.capacity"),
        ("shares: {peer: {longest_ttl: 40d}}", "shares.peer.longest_ttl"),
        ("shares: {peer: {bytes_in_flight: 0}}", "shares.peer.bytes_in_flight"),
        ("shares: {stranger_capacity: 0}", "shares.stranger_capacity"),
        ("shares: {stranger_capacity: 1001}", "shares.stranger_capacity"),
        ("shares: {everybody: {}}", "shares.everybody"),
        ("shares: {assured_bids: none}", "shares.assured_bids"),
        ("rules: {}", "rules"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(content: str, field: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_access(content.encode(), "access.yaml")
    assert caught.value.code == "bad_access"
    assert caught.value.field == field
    assert "access.yaml, line 1" in caught.value.message


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_nothing_but_a_document_error_comes_of_any_bytes(data: st.DataObject) -> None:
    raw = bytearray(EXAMPLE.encode())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    try:
        access = parse_access(bytes(raw), "access.yaml")
    except DocumentError as error:
        assert error.code == "bad_access"  # noqa: PT017 - whether it raises is for the bytes to decide
    else:
        assert isinstance(access, OwnerAccess)
