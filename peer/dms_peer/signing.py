"""Signs and checks bids with libp2p's signed envelopes, for the protocols, which do not use libp2p."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from libp2p.abc import IHost
from libp2p.crypto.ed25519 import Ed25519PrivateKey

from dms_host.errors import BadEnvelopeError, IdentityError
from dms_host.keys.envelopes import open_envelope, sign_envelope
from dms_host.keys.identity import Identity, new_identity, public_key_of
from dms_protocols.errors import EnvelopeError

from .errors import PeerError

__all__ = ["EnvelopeChecker", "IdentitySigner", "host_identity", "trusted_keys"]

_SEED_SIZE = 32


@dataclass(frozen=True, slots=True)
class IdentitySigner:
    """Signs with the key of one identity."""

    identity: Identity

    @property
    def peer_id(self) -> str:
        """The id of the peer whose key signs."""
        return self.identity.peer_id

    def sign(self, domain: str, payload_type: bytes, payload: bytes) -> bytes:
        """The bytes of a signed envelope around the payload."""
        return sign_envelope(self.identity, domain, payload_type, payload)


class EnvelopeChecker:
    """Opens envelopes of any peer."""

    def open(self, raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
        """The signer's peer id and the payload. Raises the wire's EnvelopeError."""
        try:
            return open_envelope(raw, domain, payload_type)
        except BadEnvelopeError as error:
            # The wire has two codes: one for an unreadable envelope, and one for an invalid signature.
            code = "bad_signature" if error.code == "bad_signature" else "bad_envelope"
            raise EnvelopeError(error.message, code=code) from error


def host_identity(host: IHost) -> Identity:
    """The identity of a host that another program made.

    Raises IdentityError `key_unsupported` unless its key is an Ed25519 key: only such a peer id contains its key.
    """
    key = host.get_private_key()
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(
            "the host's key is not an Ed25519 key",
            code="key_unsupported",
            path="",
            hint="make the host with a key of libp2p.crypto.ed25519",
        )
    return new_identity(key.to_bytes()[:_SEED_SIZE])


def trusted_keys(peer_ids: Iterable[str]) -> dict[str, bytes]:
    """The public keys of peers whose grants are accepted. Raises PeerError `bad_peer_id` for an id without a key."""
    return {peer_id: _public_key(peer_id) for peer_id in peer_ids}


def _public_key(peer_id: str) -> bytes:
    key = public_key_of(peer_id)
    if key is None:
        raise PeerError(
            f"{peer_id[:64]!r} is not the id of an Ed25519 key", code="bad_peer_id", hint="use one like 12D3KooW..."
        )
    return key
