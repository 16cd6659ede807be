"""A private network of two libraries: go-libp2p reads what we encrypt, and vice versa."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_host import attach_protocols, dial, host_addresses, open_host, open_stream
from dms_host.errors import DialError
from dms_host.keys.identity import new_identity
from dms_host.keys.swarm_key import create_swarm_key
from dms_protocols.protocol_ids import RESOURCES_PROTOCOL

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """The key files of two networks."""
    ours, other = tmp_path / "swarm.key", tmp_path / "other.key"
    create_swarm_key(ours)
    create_swarm_key(other)
    return ours, other


def key(path: Path) -> bytes:
    return bytes.fromhex(path.read_text().split()[-1])


async def test_we_dial_a_go_peer_of_our_network_and_no_other(programs: Any, keys: tuple[Path, Path]) -> None:
    programs.need("Go")
    ours, other = keys
    with programs.provider("Go", "-psk", str(ours)) as provider:
        async with open_host(new_identity(), psk=key(ours)) as member:
            peer_id = await dial(member, provider.address)
            async with await open_stream(member, peer_id, ["/ipfs/ping/1.0.0"]) as stream:
                await stream.send_all(bytes(32))
                assert await stream.receive_some() == bytes(32)
        for psk in (key(other), None):
            async with open_host(new_identity(), psk=psk) as stranger:
                with pytest.raises(DialError) as caught, trio.fail_after(5):
                    await dial(stranger, provider.address)
                assert caught.value.code in ("wrong_network", "handshake_failed")


async def test_a_go_peer_of_our_network_dials_us_and_no_other(programs: Any, keys: tuple[Path, Path]) -> None:
    programs.need("Go")
    ours, other = keys
    callers: list[str] = []

    async def hang_up(stream: Any, peer_id: str) -> None:
        callers.append(peer_id)
        await stream.areset()

    async with (
        open_host(new_identity(), [LOOPBACK], psk=key(ours)) as host,
        attach_protocols(host, {RESOURCES_PROTOCOL: hang_up}),
    ):

        async def ask(*options: str) -> str:
            command = [*programs.command("Go"), *options, "client", host_addresses(host)[0]]
            done = await trio.run_process(command, capture_stderr=True, stdout=subprocess.DEVNULL, check=False)
            return bytes(done.stderr).decode()

        for stranger in (("-psk", str(other)), ()):
            assert "failed to negotiate security protocol" in await ask(*stranger)
        assert not callers
        # It is admitted up to the protocol negotiation, where this host serves nothing for it.
        await ask("-psk", str(ours))
        assert len(callers) == 1
