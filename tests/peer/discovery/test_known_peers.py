from __future__ import annotations

import json
import logging
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer.discovery.known_peers import KnownPeers, open_known_peers
from dms_peer.discovery.peers_file import FORGET_AFTER, KnownPeer, PeersFile, merge_peers
from dms_peer.requesting.network import CandidateSource
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.components import CPU, GPU, RAM, Disk, FreeResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.units import Cores


def free(cores: int, **changes: Any) -> FreeResources:
    said: dict[str, Any] = {"gpus": (), "ports": 1, "onboarded": True, "draining": False, "simulated": False} | changes
    return FreeResources(cpu=CPU(cores=Cores.of(cores)), ram=RAM(size=1), disk=Disk(size=1), **said)


def request(*cores: int, excluded: tuple[str, ...] = ()) -> EnsembleRequest:
    nodes = tuple(
        NodeRequest(node_id=str(number), resources=Demand(cpu=CPUDemand(cores=Cores.of(one))))
        for number, one in enumerate(cores)
    )
    return EnsembleRequest(id="e", nonce=1, deadline=2e9, request=nodes, peer_exclusion=excluded)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("dms_peer.discovery.peers_file.time.time", made)
    return made


def entries(directory: Path, pattern: str) -> list[Path]:
    return list(directory.glob(pattern))


async def named(source: CandidateSource, asked: EnsembleRequest) -> list[str]:
    async with source.candidates(asked) as candidates:
        return [candidate.peer_id async for candidate in candidates]


async def found(peers: KnownPeers, asked: EnsembleRequest) -> list[str]:
    return await named(peers, asked) + await named(peers.others, asked)


async def test_those_that_had_room_come_first_then_those_that_never_said(clock: Clock) -> None:
    peers = KnownPeers(clock=clock)
    for peer_id, cores in {"full-long-ago": 1, "able-before": 8, "silent": None, "full": 1, "able": 4}.items():
        peers.seen(peer_id, [f"/{peer_id}"], free(cores) if cores is not None else None)
        clock.now += 10
    assert await found(peers, request(4)) == ["able", "able-before", "silent", "full-long-ago", "full"]
    # One node of the ensemble is enough.
    assert await found(peers, request(16, 1)) == ["able", "full", "able-before", "full-long-ago", "silent"]
    assert await found(peers, request(4, excluded=("able", "full"))) == ["able-before", "silent", "full-long-ago"]


async def test_those_of_whom_nothing_speaks_come_after_all_other_sources(clock: Clock) -> None:
    peers = KnownPeers(clock=clock)
    for peer_id, cores in {"silent": None, "full": 1, "able": 4}.items():
        peers.seen(peer_id, [f"/{peer_id}"], free(cores) if cores is not None else None)
    assert await named(peers, request(4)) == ["able"]
    assert await named(peers.others, request(4)) == ["silent", "full"]


async def test_a_candidate_shows_how_old_its_figure_is(clock: Clock) -> None:
    peers = KnownPeers(clock=clock)
    peers.seen("p", ["/a"], free(4))
    clock.now += 60
    # It answered again without reporting its free capacity: the figure keeps its age.
    peers.seen("p", ["/b"])
    async with peers.candidates(request(1)) as candidates:
        (one,) = [candidate async for candidate in candidates]
    assert (one.source, one.addrs, one.age(clock.now)) == ("known", ("/b", "/a"), 60)
    assert one.free == free(4)


async def test_who_cannot_be_reached_is_left_alone_ever_longer(clock: Clock) -> None:
    peers = KnownPeers(clock=clock)
    peers.seen("p", ["/a"])
    peers.unreachable("p")
    assert await found(peers, request(1)) == []
    clock.now += 31
    assert await found(peers, request(1)) == ["p"]
    for _ in range(3):
        peers.unreachable("p")
    clock.now += 200
    assert await found(peers, request(1)) == []
    clock.now += 50
    assert await found(peers, request(1)) == ["p"]
    peers.unreachable("p")
    peers.seen("p", ["/a"])
    assert await found(peers, request(1)) == ["p"]
    # A peer that never answered is not remembered.
    peers.unreachable("stranger")
    assert len(peers) == 1
    # A peer that was down for years neither overflows nor stays away for ever.
    for _ in range(5000):
        peers.unreachable("p")
    clock.now += 6 * 3600 + 1
    assert await found(peers, request(1)) == ["p"]


def test_the_least_recently_seen_goes(clock: Clock) -> None:
    peers = KnownPeers(most=3, clock=clock)
    for peer_id in ("a", "b", "c", "a", "d"):
        peers.seen(peer_id, [])
    assert [peer.peer_id for peer in peers.recent(9)] == ["d", "a", "c"]
    assert [peer.peer_id for peer in peers.recent(2)] == ["d", "a"]


def test_what_a_peer_says_is_bounded(clock: Clock) -> None:
    peers = KnownPeers(clock=clock)
    gpus = tuple(GPU(uuid="u" * 1000, vram=1, driver_version="v" * 1000) for _ in range(1000))
    for number in range(100):
        peers.seen("p", [f"/{number}", "/" + "x" * 1000], free(1, gpus=gpus))
    (peer,) = peers.recent(1)
    assert peer.addrs == tuple(f"/{number}" for number in range(99, 91, -1))
    assert peer.free is not None
    assert len(peer.free.gpus) == 64
    assert len(peer.free.gpus[0].uuid) == 128
    assert peer.free.gpus[0].driver_version == ""


async def test_what_is_known_outlives_the_program(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "peers.json"
    async with open_known_peers(path, clock=clock) as peers:
        peers.seen("p", ["/a"], free(4, gpus=(GPU(uuid="g", vram=7),)))
        peers.seen("q", ["/b"])
        peers.unreachable("q")
        before = peers.recent(9)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with open_known_peers(path, clock=clock) as peers:
        assert peers.recent(9) == before
        assert peers.recent(1)[0].failures == 1
    # Without a file nothing is saved.
    async with open_known_peers(None) as peers:
        peers.seen("p", [])


async def test_it_is_written_at_intervals_and_in_a_thread(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[tuple[float, bool]] = []
    written = trio.Event()
    save = PeersFile.save

    def note(self: PeersFile, peers: Any) -> Any:
        in_thread = threading.current_thread() is not threading.main_thread()
        writes.append((trio.from_thread.run_sync(trio.current_time) - started, in_thread))
        trio.from_thread.run_sync(written.set)
        return save(self, peers)

    monkeypatch.setattr(PeersFile, "save", note)
    started = trio.current_time()
    async with open_known_peers(tmp_path / "peers.json", save_interval=60) as peers:
        peers.seen("p", [])
        await written.wait()
        # Nothing new, so nothing is written, not even at the end.
        await trio.sleep(600)
    assert writes == [(60, True)]


async def test_two_programs_of_one_home_keep_what_both_learned(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "peers.json"
    async with open_known_peers(path, clock=clock) as one:
        one.seen("both", ["/old"])
        one.seen("one", ["/1"])
        clock.now += 5
        async with open_known_peers(path, clock=clock) as other:
            other.seen("both", ["/new"])
            other.seen("other", ["/2"])
        one.seen("late", [])
    async with open_known_peers(path, clock=clock) as again:
        assert {peer.peer_id: peer.addrs for peer in again.recent(9)} == {
            "both": ("/new",),
            "one": ("/1",),
            "other": ("/2",),
            "late": (),
        }


async def test_the_running_one_learns_what_the_other_wrote(tmp_path: Path, clock: Clock, eventually: Any) -> None:
    path = tmp_path / "peers.json"
    async with open_known_peers(path, clock=clock, save_interval=0.01) as one:
        async with open_known_peers(path, clock=clock) as other:
            other.seen("other", ["/2"])
        one.seen("one", [])
        await eventually(lambda: one.get("other") is not None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff not json",
        b"[]",
        b'{"version": 2, "peers": []}',
        b'{"version": 1, "peers": [{"peer_id": 7}]}',
        b'{"version": 1, "peers": ' + b"[" * 100_000,
    ],
)
async def test_a_damaged_file_is_set_aside_and_reported(
    tmp_path: Path, clock: Clock, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        async with open_known_peers(path, clock=clock) as peers:
            assert len(peers) == 0
            peers.seen("p", [])
    (aside,) = entries(tmp_path, "peers.json.damaged-*")
    assert aside.read_bytes() == content
    assert [aside.name in record.getMessage() for record in caplog.records] == [True]
    assert json.loads(path.read_text())["peers"][0]["peer_id"] == "p"


async def test_a_file_that_cannot_be_written_costs_a_line_in_the_log(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "missing" / "peers.json"
    async with open_known_peers(path) as peers:
        peers.seen("p", [])
        assert len(peers) == 1
    assert ["cannot be" in record.getMessage() for record in caplog.records] == [True, True]


async def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    path = tmp_path / "peers.json"
    async with open_known_peers(path) as peers:
        peers.seen("p", [])
    before = path.read_bytes()

    def no_room(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dms_resources.private_files.os.fsync", no_room)
    async with open_known_peers(path) as peers:
        peers.seen("q", [])
    assert path.read_bytes() == before
    assert {entry.name for entry in entries(tmp_path, "*")} == {"peers.json", "peers.lock"}


def test_who_was_not_seen_for_long_is_forgotten() -> None:
    now = 1e9
    ages = {"now": 0.0, "old": FORGET_AFTER - 1, "gone": FORGET_AFTER + 1, "from another time": -FORGET_AFTER - 1}
    peers = [KnownPeer(peer_id=peer_id, addrs=(), last_seen=now - age) for peer_id, age in ages.items()]
    assert list(merge_peers(peers, (), most=9, now=now)) == ["old", "now"]
    assert list(merge_peers(peers, (), most=1, now=now)) == ["now"]


async def test_an_error_of_the_block_comes_out_as_it_is_and_everything_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # it is raised inside
        async with open_known_peers(path) as peers:
            peers.seen("p", [])
            raise ZeroDivisionError
    assert b'"p"' in path.read_bytes()


async def test_cancelled_it_still_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    with trio.CancelScope() as scope:
        async with open_known_peers(path) as peers:
            peers.seen("p", [])
            scope.cancel()
            await trio.sleep_forever()
    assert b'"p"' in path.read_bytes()
