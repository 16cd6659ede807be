import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from dms_host.errors import IdentityError
from dms_host.keys.identity import Identity, load_identity, load_or_create_identity, new_identity, public_key_of

ED25519_KEY = b"\x08\x01\x12\x20" + bytes(range(32))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "identity.key"


def refused(path: Path) -> IdentityError:
    with pytest.raises(IdentityError) as caught:
        load_or_create_identity(path)
    assert caught.value.path == str(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


def test_created_once_and_the_same_ever_after(key_file: Path) -> None:
    first = load_or_create_identity(key_file)
    assert load_or_create_identity(key_file) == first == load_identity(key_file)
    assert list(key_file.parent.iterdir()) == [key_file]


def test_only_the_owner_can_read_it_whatever_the_umask(key_file: Path) -> None:
    before = os.umask(0o777)
    try:
        key_file.parent.mkdir(mode=0o700)
        key_file.parent.chmod(0o700)
        load_or_create_identity(key_file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_the_peer_id_and_the_file_are_those_of_libp2p(key_file: Path) -> None:
    from libp2p.identity_utils import load_identity as load_libp2p_identity
    from libp2p.peer.id import ID

    identity = load_or_create_identity(key_file)
    pair = load_libp2p_identity(key_file)
    assert ID.from_pubkey(pair.public_key).to_base58() == identity.peer_id
    assert ID.from_pubkey(identity.key_pair().public_key).to_base58() == identity.peer_id
    assert pair.private_key.to_bytes() == identity.key_pair().private_key.to_bytes()


def test_a_missing_file_is_missing_when_it_must_not_be_created(key_file: Path) -> None:
    with pytest.raises(IdentityError) as caught:
        load_identity(key_file)
    assert caught.value.code == "key_missing"
    assert not key_file.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_file_that_others_can_access_is_refused(key_file: Path, mode: int) -> None:
    load_or_create_identity(key_file)
    key_file.chmod(mode)
    assert refused(key_file).code == "key_exposed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(key_file: Path) -> None:
    load_or_create_identity(key_file)
    os.chown(key_file, 12345, -1)
    assert refused(key_file).code == "key_foreign"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        ED25519_KEY[:-1],
        ED25519_KEY + b"\x00",
        b"\x08\x02" + ED25519_KEY[2:],
        os.urandom(36),
        b"x" * 100_000,
        b"-----BEGIN PRIVATE KEY-----\n",
    ],
    ids=["empty", "one byte", "truncated", "too long", "secp256k1", "random", "huge", "pem"],
)
def test_a_damaged_file_is_refused_and_left_alone(key_file: Path, content: bytes) -> None:
    key_file.parent.mkdir()
    key_file.write_bytes(content)
    key_file.chmod(0o600)
    assert refused(key_file).code == "key_damaged"
    assert key_file.read_bytes() == content


def test_what_is_no_file_is_refused_at_once(key_file: Path) -> None:
    key_file.mkdir(parents=True)
    assert refused(key_file).code == "key_damaged"
    fifo = key_file.parent / "fifo"
    os.mkfifo(fifo, 0o600)
    assert refused(fifo).code == "key_damaged"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file" / "identity.key").code in ("key_unwritable", "key_unreadable")


def test_a_failed_creation_leaves_nothing_behind(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refused(key_file).code == "key_unwritable"
    assert list(key_file.parent.iterdir()) == []


def test_those_who_create_at_once_agree(key_file: Path) -> None:
    found: list[Identity] = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait()
        found.append(load_or_create_identity(key_file))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_the_seed_is_not_shown() -> None:
    identity = new_identity(bytes(32))
    assert "seed" not in repr(identity)
    with pytest.raises(ValueError, match="32 bytes"):
        new_identity(b"short")


def test_neither_the_identity_nor_the_errors_import_libp2p() -> None:
    code = (
        "import sys, dms_host, dms_host.errors, dms_host.keys.identity as i; i.new_identity();"
        "print([m for m in sys.modules if m.split('.')[0] == 'libp2p'])"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_peer_id_gives_its_key_only_where_it_has_one() -> None:
    identity = new_identity(bytes(32))
    assert public_key_of(identity.peer_id) == bytes(SigningKey(bytes(32)).verify_key)
    # A hash of a key, half an id, one with more behind it, and no base58 at all.
    rsa = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
    for other in (rsa, identity.peer_id[:-2], identity.peer_id + "1", "0OIl", ""):
        assert public_key_of(other) is None
