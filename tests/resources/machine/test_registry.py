"""The peers of one machine know each other's offers. Other files in the folder do no harm."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
import trio

from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.errors import MachineInUseError
from dms_resources.machine.hardware.roots import HOST
from dms_resources.machine.registry import Registration, shared_folder
from dms_resources.machine.sharing import read_bounds
from dms_resources.units import GIB, Cores

_CPU = CPU(cores=Cores(os.cpu_count() * 1000 if os.cpu_count() else 1000))
_MACHINE = MachineResources(cpu=_CPU, ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=())
_LITTLE = OnboardedResources(cpu=CPU(cores=Cores(1)), ram=RAM(size=1), disk=Disk(size=0), gpus=())


def _whole(tmp_path: Path) -> OnboardedResources:
    """All cores that this machine has."""
    cores = read_bounds(_MACHINE, tmp_path, HOST)[0].cores
    assert cores is not None
    return OnboardedResources(cpu=CPU(cores=Cores(cores)), ram=RAM(size=1), disk=Disk(size=0), gpus=())


def _peer(tmp_path: Path, name: str, **options: bool) -> Registration:
    return Registration(tmp_path / name, _MACHINE, tmp_path / "registry", **options)


def test_a_peer_of_another_home_is_seen_while_it_runs(tmp_path: Path) -> None:
    one, two = _peer(tmp_path, "one"), _peer(tmp_path, "two")
    assert one.sentences(_LITTLE) == ()
    with one.registered(_LITTLE):
        assert one.sentences(_LITTLE) == ()
        seen, ports = two.sentences(_LITTLE)
        assert seen == f"process {os.getpid()} is another peer on this machine"
        assert ports.startswith("ports 16384-32767 are promised by")
        with two.registered(None):
            assert len(_peer(tmp_path, "three").sentences(None)) == 2
    assert two.sentences(_LITTLE) == ()
    assert os.listdir(tmp_path / "registry") == []


def test_a_peer_whose_offer_does_not_fit_is_refused(tmp_path: Path) -> None:
    whole = _whole(tmp_path)
    with _peer(tmp_path, "one").registered(whole):
        with (
            pytest.raises(MachineInUseError, match=r"CPU: 0\.001 cores here and .* of process") as refused,
            _peer(tmp_path, "two").registered(_LITTLE),
        ):
            pytest.fail("it runs")
        assert "--share-machine" in refused.value.hint
        assert len(os.listdir(tmp_path / "registry")) == 1
        with _peer(tmp_path, "two", share_machine=True).registered(_LITTLE):
            assert len(os.listdir(tmp_path / "registry")) == 2
    with _peer(tmp_path, "two").registered(whole):
        pass


def test_a_running_peer_may_offer_what_another_leaves(tmp_path: Path) -> None:
    whole = _whole(tmp_path)
    one, two = _peer(tmp_path, "one"), _peer(tmp_path, "two")
    with one.registered(None), two.registered(None):
        one.publish(whole)
        with pytest.raises(MachineInUseError):
            two.check(_LITTLE)
        with pytest.raises(MachineInUseError):
            two.publish(_LITTLE)
        # What was refused was not published.
        one.publish(whole)
        one.publish(None)
        two.publish(whole)
        one.restore(whole)
        assert any("CPU: " in sentence for sentence in two.sentences(whole))


async def test_of_two_that_start_at_once_one_is_refused(tmp_path: Path) -> None:
    whole, outcomes = _whole(tmp_path), list[str]()
    peers = [_peer(tmp_path, name) for name in ("one", "two", "three")]

    async def publish(peer: Registration) -> None:
        try:
            await trio.to_thread.run_sync(peer.publish, whole)
        except MachineInUseError:
            outcomes.append("refused")
        else:
            outcomes.append("offered")

    with peers[0].registered(None), peers[1].registered(None), peers[2].registered(None):
        for _ in range(10):
            outcomes.clear()
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(publish, peer)
            assert sorted(outcomes) == ["offered", "refused", "refused"]
            for peer in peers:
                peer.restore(None)


def test_two_names_of_one_home_are_one_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with _peer(tmp_path, "home").registered(_whole(tmp_path)):
        assert _peer(tmp_path, "link").sentences(_LITTLE) == ()


def test_a_peer_that_was_killed_is_gone(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_registry import _peer, _whole
        with _peer(Path(sys.argv[1]), "other").registered(_whole(Path(sys.argv[1]))):
            print("ready", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(Path(__file__).parent)]
    home = _peer(tmp_path, "home")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert home.sentences(None) == (f"process {process.pid} is another peer on this machine",)
        with pytest.raises(MachineInUseError):
            home.check(_LITTLE)
        process.kill()
    assert home.sentences(_LITTLE) == ()
    home.check(_LITTLE)
    # The next start removes the file that it left.
    with _peer(tmp_path, "third").registered(None):
        assert len(os.listdir(tmp_path / "registry")) == 1
    with _peer(tmp_path, "other").registered(None):
        assert len(home.sentences(None)) == 1


def test_what_else_is_in_the_folder_is_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "folder").mkdir()
    (folder / "text").write_text("not a number")
    os.mkfifo(folder / f"0-{'a' * 32}")
    (folder / f"0-{'b' * 32}").mkdir()
    home = _peer(tmp_path, "home")
    assert home.sentences(_LITTLE) == ()
    with _peer(tmp_path, "other").registered(None):
        assert len(home.sentences(_LITTLE)) == 1
    assert (folder / "text").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"17", b"\xff", b"[" * 10000, b"{}", b'{"process": 7}', b'{"process": 7, "offer": {"cores": -1}}'],
)
def test_a_file_that_makes_no_sense_is_a_peer_whose_offer_is_unknown(tmp_path: Path, content: bytes) -> None:
    home = _peer(tmp_path, "home")
    with _peer(tmp_path, "other").registered(_whole(tmp_path)):
        (name,) = os.listdir(tmp_path / "registry")
        (tmp_path / "registry" / name).write_bytes(content)
        assert home.sentences(_LITTLE) == ("process unknown is another peer on this machine",)
        home.check(_LITTLE)


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    peer = _peer(tmp_path, "home")
    with peer.registered(None):
        (name,) = os.listdir(tmp_path / "registry")
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / "registry" / name).symlink_to(target)
    with peer.registered(_LITTLE):
        assert target.read_text() == "kept"


def test_a_registry_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("")
    with _peer(tmp_path, "home").registered(_LITTLE):
        assert _peer(tmp_path, "other").sentences(_LITTLE) == ()


def test_a_process_that_keeps_the_registrys_lock_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dms_resources.machine.registry._LONGEST_WAIT", 0.0)
    (tmp_path / "registry").mkdir()
    with subprocess.Popen(
        ["flock", str(tmp_path / "registry"), "sh", "-c", "echo ready; cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with _peer(tmp_path, "home").registered(_LITTLE):
            pass
        process.kill()


def test_the_folder_is_for_all_users_and_the_file_tells_the_offer_only(tmp_path: Path) -> None:
    with _peer(tmp_path, "home").registered(_LITTLE):
        folder = tmp_path / "registry"
        assert folder.stat().st_mode & 0o7777 == 0o1777
        content = msgspec.json.decode((folder / os.listdir(folder)[0]).read_bytes())
    assert content.keys() == {"process", "offer"}
    assert content["offer"].keys() <= {"bounds", "cores", "ram", "disk", "gpus", "gpu_sizes", "whole_gpus", "ports"}
    assert str(tmp_path) not in str(content)
    assert shared_folder().name == "dms-peer"
