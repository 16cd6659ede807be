"""The envelopes in the test vectors, opened with the code of a running peer."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from dms_host.keys.identity import new_identity
from dms_peer.signing import EnvelopeChecker, IdentitySigner
from dms_protocols.errors import EnvelopeError

VECTOR = json.loads((files("dms_protocols") / "test_vectors.json").read_text())["derived"]["envelopes"]
DOMAIN, PAYLOAD_TYPE = VECTOR["domain"], VECTOR["payload_type"].encode()


def test_the_envelope_is_what_a_peer_signs_and_opens() -> None:
    identity = new_identity(bytes.fromhex(VECTOR["seed"]))
    raw, payload = bytes.fromhex(VECTOR["envelope"]), bytes.fromhex(VECTOR["payload"])
    assert IdentitySigner(identity).sign(DOMAIN, PAYLOAD_TYPE, payload) == raw
    assert EnvelopeChecker().open(raw, DOMAIN, PAYLOAD_TYPE) == (identity.peer_id, payload)


@pytest.mark.parametrize("variant", VECTOR["refused"], ids=lambda variant: variant["meaning"])
def test_every_changed_envelope_is_refused_with_its_code(variant: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeError) as refused:
        EnvelopeChecker().open(bytes.fromhex(variant["hex"]), DOMAIN, PAYLOAD_TYPE)
    assert refused.value.code == variant["code"]
