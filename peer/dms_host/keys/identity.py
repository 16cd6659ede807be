"""The identity of this peer: one Ed25519 key in a file that only its owner can read.

The file has the key in libp2p's protobuf form, as py-libp2p's own key store writes it. This module does not need
libp2p, whose import takes more than a second, so that local commands can show the peer id at once.

Rules:
1. The file is written whole or not at all, with mode 0600, and an existing file is never overwritten.
2. A file that other users can read, that another user owns, or that has no Ed25519 key is refused, not repaired: a
   user who could read the key can already act as this peer.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import IdentityError
from .key_files import create_key_file, damaged_key, read_key_file

if TYPE_CHECKING:
    from libp2p.crypto.keys import KeyPair

__all__ = ["Identity", "load_identity", "load_or_create_identity", "new_identity", "public_key_of"]

SEED_SIZE = 32
# Protobuf of libp2p's PrivateKey and PublicKey messages: field 1 (type) = 1 (Ed25519), field 2 (data), 32 bytes.
KEY_PREFIX = b"\x08\x01\x12\x20"
# The peer id of a short key is the key itself under the identity multihash: code 0, length 36.
IDENTITY_MULTIHASH = b"\x00\x24"


@dataclass(frozen=True, slots=True)
class Identity:
    """An Ed25519 key and the peer id derived from it. `repr` does not show the seed."""

    seed: bytes = field(repr=False)
    peer_id: str

    def key_pair(self) -> KeyPair:
        """The same key as libp2p's key pair. Imports libp2p, which takes more than a second the first time."""
        return _key_pair(self.seed)


@lru_cache(maxsize=8)
def _key_pair(seed: bytes) -> KeyPair:
    # Cached, because deriving the pair costs as much as a signature, and every signature needs it. Imported here,
    # because local commands need only the peer id and must start fast.
    from libp2p.crypto.ed25519 import create_new_key_pair

    return create_new_key_pair(seed)


def new_identity(seed: bytes | None = None) -> Identity:
    """A new identity, from random bytes or a 32-byte seed. Nothing is written. Raises ValueError if the seed has
    another length.
    """
    # PyNaCl and base58 are dependencies of libp2p. Together they import in 40 ms, and only when an identity is needed.
    import base58
    from nacl.signing import SigningKey

    seed = secrets.token_bytes(SEED_SIZE) if seed is None else seed
    if len(seed) != SEED_SIZE:
        raise ValueError(f"an Ed25519 seed has {SEED_SIZE} bytes, not {len(seed)}")
    public_key = bytes(SigningKey(seed).verify_key)
    peer_id = base58.b58encode(IDENTITY_MULTIHASH + KEY_PREFIX + public_key).decode()
    return Identity(seed, peer_id)


def public_key_of(peer_id: str) -> bytes | None:
    """The Ed25519 public key inside a peer id; None if the id is of another kind, or invalid."""
    import base58

    try:
        raw = base58.b58decode(peer_id)
    except ValueError:
        return None
    prefix = IDENTITY_MULTIHASH + KEY_PREFIX
    return raw[len(prefix) :] if raw.startswith(prefix) and len(raw) == len(prefix) + SEED_SIZE else None


def load_or_create_identity(path: Path) -> Identity:
    """The identity in `path`. If the file does not exist, it is created first. Raises IdentityError. Blocks on disk.

    Two processes that create it at the same time end up with the same identity.
    """
    try:
        return load_identity(path)
    except IdentityError as error:
        if error.code != "key_missing":
            raise
    try:
        create_key_file(path, KEY_PREFIX + new_identity().seed)
    except FileExistsError:
        pass  # Another process was first, so its key is used.
    except OSError as error:
        raise IdentityError(
            f"cannot create the key file {path}: {error.strerror}",
            code="key_unwritable",
            path=str(path),
            hint="choose another home directory, or give its owner write permission",
        ) from error
    return load_identity(path)


def load_identity(path: Path) -> Identity:
    """The identity in `path`. Raises IdentityError: missing, exposed, foreign, damaged… Blocks on disk."""
    return _parse(path, read_key_file(path, "start the peer once to create it"))


def _parse(path: Path, raw: bytes) -> Identity:
    if not raw:
        raise damaged_key(path, "it is empty")
    # In both formats the type comes first, so that the error can name the type.
    if raw[:1] == KEY_PREFIX[:1] and raw[1:2] != KEY_PREFIX[1:2] and len(raw) > len(KEY_PREFIX):
        raise damaged_key(path, "its key is not an Ed25519 key")
    if not raw.startswith(KEY_PREFIX) or len(raw) != len(KEY_PREFIX) + SEED_SIZE:
        raise damaged_key(path, f"its {len(raw)} bytes are not an Ed25519 key")
    return new_identity(raw[len(KEY_PREFIX) :])
