from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from dms_protocols.vectors import make_vectors

VECTORS = json.loads((files("dms_protocols") / "test_vectors.json").read_text())
REQUESTS = [frame for frame in VECTORS["frames"] if frame["meaning"].startswith("request: ")]


def test_the_wire_has_not_changed_by_accident() -> None:
    # On purpose: python -m dms_protocols.vectors > protocols/dms_protocols/test_vectors.json
    assert make_vectors() == VECTORS


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["meaning"])
async def test_what_is_refused(provider: Any, serving: Any, vector: dict[str, str]) -> None:
    async with serving(operations=provider.operations) as peer:
        await peer.stream.send_all(bytes.fromhex(vector["hex"]))
        assert (await peer.receive())["error"]["code"] == vector["code"]


@pytest.mark.parametrize("vector", REQUESTS, ids=lambda vector: vector["meaning"])
async def test_every_request_is_understood(provider: Any, serving: Any, vector: dict[str, Any]) -> None:
    provider.clock.now = 1_700_000_000.0
    async with serving(operations=provider.operations) as peer:
        await peer.stream.send_all(bytes.fromhex(vector["hex"]))
        answer = await peer.receive()
    assert answer["id"] == vector["message"]["id"]
    assert answer.get("error", {}).get("code") not in ("bad_message", "bad_cbor", "unknown_operation", "internal")


async def test_every_operation_has_a_vector(provider: Any) -> None:
    shown = {vector["message"]["op"] for vector in REQUESTS}
    assert shown == {*provider.operations, "cancel"}
