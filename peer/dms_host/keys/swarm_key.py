"""The key of a private network: a file that all its members have, in the format of all libp2p implementations.

Three lines: `/key/swarm/psk/1.0.0/`, the encoding (`/base16/` or `/base64/`), and 32 bytes in this encoding
(https://github.com/libp2p/specs/blob/master/pnet/Private-Networks-PSK-V1.md). This module does not need libp2p.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from pathlib import Path

from ..errors import IdentityError
from .key_files import create_key_file, damaged_key, read_key_file

__all__ = ["create_swarm_key", "load_swarm_key"]

HEADER = "/key/swarm/psk/1.0.0/"
KEY_SIZE = 32


def load_swarm_key(path: Path) -> bytes:
    """The 32 bytes in `path`. Raises IdentityError: missing, exposed, foreign, damaged… Blocks on disk."""
    raw = read_key_file(path, "copy the file from another peer of the network, or make a new network")
    try:
        header, encoding, text = raw.decode("ascii").split()
        key = _decode(encoding, text)
    except (ValueError, binascii.Error):
        raise damaged_key(path, f"it is not {HEADER}, /base16/ or /base64/, and a key, on a line each") from None
    if header != HEADER:
        raise damaged_key(path, f"it begins with {header[:40]} instead of {HEADER}")
    if len(key) != KEY_SIZE:
        raise damaged_key(path, f"its key has {len(key)} bytes, not {KEY_SIZE}")
    return key


def create_swarm_key(path: Path) -> bytes:
    """Create the key of a new network in `path`, for its owner alone. Raises IdentityError. Blocks on disk."""
    key = secrets.token_bytes(KEY_SIZE)
    try:
        create_key_file(path, f"{HEADER}\n/base16/\n{key.hex()}\n".encode())
    except FileExistsError:
        raise IdentityError(
            f"there is a key file {path} already",
            code="key_exists",
            path=str(path),
            hint="choose another name, or use that one",
        ) from None
    except OSError as error:
        raise IdentityError(
            f"cannot create the key file {path}: {error.strerror}",
            code="key_unwritable",
            path=str(path),
            hint="choose another directory, or give its owner write permission",
        ) from error
    return key


def _decode(encoding: str, text: str) -> bytes:
    match encoding:
        case "/base16/":
            return bytes.fromhex(text)
        case "/base64/":
            return base64.b64decode(text, validate=True)
        case _:
            raise ValueError(encoding)
