"""Cheap signatures, for many peers in one process that trust each other."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import cbor2

from dms_protocols.errors import EnvelopeError

__all__ = ["SimulatedOpener", "SimulatedSigner"]


def _digest(peer_id: str, domain: str, payload_type: bytes, payload: bytes) -> bytes:
    key = hashlib.blake2b(peer_id.encode(), digest_size=32).digest()
    return hashlib.blake2b(cbor2.dumps([domain, payload_type, payload]), key=key, digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class SimulatedSigner:
    """Signs for one peer id. It proves that nothing was changed, but not who signed: anybody can make the key."""

    peer_id: str

    def sign(self, domain: str, payload_type: bytes, payload: bytes) -> bytes:
        """The bytes of an envelope around the payload."""
        digest = _digest(self.peer_id, domain, payload_type, payload)
        return cbor2.dumps([self.peer_id, payload_type, payload, digest])


class SimulatedOpener:
    """Opens the envelopes of SimulatedSigner."""

    def open(self, raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
        """The signer's peer id and the payload; raises EnvelopeError."""
        try:
            peer_id, kind, payload, digest = cbor2.loads(raw)
            intact = hmac.compare_digest(digest, _digest(peer_id, domain, kind, payload))
        except Exception:
            raise EnvelopeError("unreadable") from None
        if kind != payload_type:
            raise EnvelopeError("holds something else")
        if not intact:
            raise EnvelopeError("changed", code="bad_signature")
        return peer_id, payload
