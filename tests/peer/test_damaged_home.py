"""The peer's remembered state never prevents its start: each damaged file is renamed, and the peer starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from dms_host.errors import IdentityError
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.errors import PeerError
from dms_peer.home.home import Home, home_at
from dms_peer.node import Node

QUIET = DiscoverySettings(mdns=False, dht=False)


def half_written(path: Path) -> None:
    path.write_text('{"version": 1, "pe')


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.mkdir()
    (path / "content").write_text("x")


def link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("not ours")
    path.symlink_to(path.parent / "elsewhere")


def huge(path: Path) -> None:
    with open(path, "wb") as file:
        # Sparse: it takes no space.
        file.truncate(1 << 40)


def other_version(path: Path) -> None:
    path.write_text('{"version": 99, "peers": []}')


def other_owner(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path.write_text("[]")
    os.chown(path, 4321, 4321)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.prepare()
    return home


@pytest.mark.parametrize("name", ["listen", "peers.json", "machine.json", "leases.json"])
@pytest.mark.parametrize(
    "damage",
    [half_written, not_text, fifo, directory, link, huge, other_version, other_owner],
    ids=lambda one: one.__name__,
)
async def test_a_damaged_file_is_put_aside_and_the_peer_starts(
    home: Home, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(home.path / name)
    with trio.fail_after(30):
        async with Node(home=home, discovery=QUIET).open() as ready:
            assert ready.addrs
    aside = [one.name for one in home.path.glob(f"{name}.damaged-*")]
    assert len(aside) == 1
    lines = [record.getMessage() for record in caplog.records]
    assert any(aside[0] in line and str(home.path / name) in line for line in lines)
    if damage is link:
        assert (home.path / "elsewhere").read_text() == "not ours"


async def test_a_directory_in_the_place_of_the_socket_is_put_aside(home: Home) -> None:
    home.socket_path.mkdir()
    async with Node(home=home).open():
        assert home.socket_path.is_socket()


@pytest.mark.parametrize("damage", [half_written, fifo, directory, link], ids=lambda one: one.__name__)
async def test_revocations_and_keys_are_never_put_aside(home: Home, damage: Callable[[Path], None]) -> None:
    """Without them a revoked grant would be valid again, or the peer would be another one, so the owner has
    to decide.
    """
    damage(home.revocations_path)
    with trio.fail_after(30), pytest.raises(PeerError, match="revoked"):
        async with Node(home=home).open():
            pass
    assert [one.name for one in home.path.iterdir() if one.name.startswith("revoked")] == ["revoked"]
    home.key_path.unlink()
    if damage is not link:
        damage(home.key_path)
        with trio.fail_after(30), pytest.raises(IdentityError):
            async with Node(home=home).open():
                pass


def test_state_files_are_private_and_links_are_replaced(home: Home) -> None:
    (home.path / "elsewhere").write_text("not ours")
    home.listen_path.symlink_to(home.path / "elsewhere")
    home.remember_listen_addresses(["/ip4/127.0.0.1/tcp/1"])
    assert not home.listen_path.is_symlink()
    assert home.listen_path.stat().st_mode & 0o777 == 0o600
    assert (home.path / "elsewhere").read_text() == "not ours"


def test_a_home_that_every_user_can_write_to_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path / "open")
    home.path.mkdir()
    home.path.chmod(0o777)
    with pytest.raises(PeerError, match="every user can write") as caught:
        home.prepare()
    assert (caught.value.code, "chmod 700" in caught.value.hint) == ("bad_home", True)


def test_the_environment_names_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMS_HOME", str(tmp_path))
    assert home_at(None).path == tmp_path
    assert home_at("/other").path == Path("/other")


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("onboard", "--cpu", "1", "--ram", "1GiB", "--disk", "1GiB"),
        ("run",),
        ("history",),
        ("config", "show"),
    ],
)
@pytest.mark.parametrize("name", [b"caf\xe9", "café".encode()])
def test_a_home_whose_path_is_not_utf8_is_named_as_such(tmp_path: Path, words: tuple[str, ...], name: bytes) -> None:
    home = os.fsencode(tmp_path) + b"/" + name
    # In this locale Python cannot read the bytes of the second name.
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable.encode(), b"-m", b"dms_peer"]
    command = [*program, *map(os.fsencode, words), b"--home", home, b"--json"]
    done = subprocess.run(command, capture_output=True, env=plain, timeout=60)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "bad_home"
    assert b"not UTF-8" in done.stderr
    assert b"damaged" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_other_paths_that_are_not_utf8_cause_coded_errors(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    commands = (
        (b"run", b"--terms", odd),
        (b"run", b"--config", odd),
        (b"run", b"--machine", odd),
        (b"config", b"check", odd),
        (b"bid", b"/ip4/127.0.0.1/tcp/1", b"-f", odd),
    )
    for words in commands:
        command = [sys.executable.encode(), b"-m", b"dms_peer", *words, b"--home", os.fsencode(tmp_path), b"--json"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
        error = json.loads(done.stdout.splitlines()[-1])["error"]
        assert done.returncode != 0
        assert error["code"] != "internal", (words, error)
        assert b"Traceback" not in done.stderr
