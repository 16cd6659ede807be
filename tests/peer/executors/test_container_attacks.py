"""Jobs that attack the machine, in real containers: what each tries, and that it does not get it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from container_engines import RunningEngine
from dms_peer.executors.docker import starting, verification, watching
from dms_peer.executors.docker.devices import plan_devices, wrong_devices
from dms_peer.executors.docker.namespaces import open_namespace
from dms_peer.executors.executor import ExecutorError, JobSpec
from dms_protocols.messages.job import Job, JobExit, JobPort
from dms_resources.components import GPU, GPUVendor
from dms_resources.machine.hardware.roots import Roots
from dms_resources.units import MIB
from executor_jobs import DEADLINE, container_spec, job_spec, joined, read_all, shell

Containers = Callable[..., Any]

pytestmark = pytest.mark.containers


async def _output(containers: Containers, spec: JobSpec, **settings: Any) -> str:
    async with containers(spec, **settings) as executor:
        await executor.start(spec)
        pieces = await read_all(executor, spec)
        return (joined(pieces) + joined(pieces, "stderr")).decode()


async def _exit(executor: Any, spec: JobSpec) -> JobExit:
    with trio.fail_after(DEADLINE):
        found = await executor.wait(spec)
    exited: JobExit = found.exit
    return exited


async def test_a_job_has_no_privileges(containers: Containers) -> None:
    said = await _output(
        containers, container_spec(*shell("grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status"))
    )
    status = dict(line.split(":\t") for line in said.splitlines())
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


async def test_a_job_sees_nothing_of_the_machine(containers: Containers, engine: RunningEngine) -> None:
    said = await _output(
        containers, container_spec(*shell("cat /proc/mounts; ls -a / /run /var; env; cat /etc/shadow"))
    )
    assert "of the engine" not in said
    assert "SVC_SECRET" not in said
    assert ".sock" not in said
    assert "No such file" in said
    folders = [line.split()[1] for line in said.splitlines() if line.startswith(("/dev/", "overlay", "tmpfs"))]
    root = str(engine.folder)
    assert not [one for one in folders if one.startswith(("/home", "/root", "/mnt", root))]
    # Files of the engine's own that every container has, and no other file of the machine.
    own = {"/", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv", "/run/podman-init"}
    own |= {"/dev", "/dev/init", "/sbin/docker-init", "/dev/shm", "/sys/fs/cgroup"}
    assert not [one for one in folders if one not in own and not one.startswith(("/proc", "/sys", "/dev/"))]


async def test_a_job_makes_no_devices_and_changes_no_kernel_setting(containers: Containers) -> None:
    text = """
mknod /tmp/disk b 8 0 && echo GOT device
head -c 1 /proc/kcore && echo GOT kcore
(echo x > /proc/sysrq-trigger) && echo GOT sysrq
(echo /x > /proc/sys/kernel/core_pattern) && echo GOT core_pattern
mount -t tmpfs none /tmp && echo GOT mount
(echo 1 > /sys/fs/cgroup/cgroup.procs) && echo GOT group
ls /dev/mem && echo GOT memory
ls /dev/sda /dev/vda && echo GOT disks
ls /dev/kmsg && echo GOT log
echo end
"""
    said = await _output(containers, container_spec(*shell(text)))
    assert "GOT" not in said
    assert "end\n" in said


@pytest.mark.parametrize(
    "document",
    [
        {"privileged": True}, {"execution": {"privileged": True}}, {"execution": {"cap_add": ["SYS_ADMIN"]}},
        {"execution": {"binds": ["/:/host"]}}, {"execution": {"network_mode": "host"}}, {"network": "host"},
        {"execution": {"environment": ["SVC_SECRET"]}}, {"execution": {"environment": ["A*"]}},
        {"execution": {"environment": ["A\nB=x"]}}, {"execution": {"environment": ["=x"]}},
        {"ports": [{"private": 0}]}, {"ports": [{"private": 80, "host_ip": "0.0.0.0"}]},
        {"files": [{"name": "../x", "content": b""}]}, {"files": [{"name": "/etc/x", "content": b""}]},
        {"files": [{"name": "x", "content": b"", "target": "/etc/passwd"}]}, {"labels": {"dms.lease": "x"}},
    ],
)  # fmt: skip
def test_a_document_cannot_even_say_it(document: dict[str, Any]) -> None:
    whole = {**document, "execution": {"type": "docker", **document.get("execution", {})}}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(whole, Job)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (container_spec("x", environment=("LD_PRELOAD=/x.so",)), "variable LD_PRELOAD"),
        (container_spec("x", environment=("NVIDIA_VISIBLE_DEVICES=all",)), "variable NVIDIA_VISIBLE"),
        (container_spec("x", environment=("DMS_JOB=other",)), "variable DMS_JOB"),
        (container_spec("x", network="full"), "network 'full' is not offered"),
        (container_spec("x", working_directory="relative"), "not an absolute path"),
        (container_spec("x", ram=0), "no memory"),
        (container_spec("x", ports=(JobPort(private=80, public=20000),)), "without a network"),
        (job_spec("x", kind="docker", image="tiny:1"), "names no registry"),
        (job_spec("x", kind="docker", image="docker.io/library/busybox"), "not on the owner's list"),
    ],
)
async def test_what_is_refused_before_anything_is_done(containers: Containers, spec: JobSpec, words: str) -> None:
    async with containers() as executor:
        with pytest.raises(ExecutorError, match=words) as caught:
            executor.check(spec)
        assert caught.value.code == "refused"


async def test_a_port_that_is_not_the_leases_is_refused(containers: Containers) -> None:
    spec = container_spec("x", network="full", ports=(JobPort(private=80, public=20000),))
    spec = JobSpec(**{name: getattr(spec, name) for name in spec.__slots__} | {"ports": (20001,)})
    async with containers(networks=("full",)) as executor:
        with pytest.raises(ExecutorError, match="not the lease's"):
            executor.check(spec)


async def test_a_published_port_answers_and_a_second_job_cannot_take_it(containers: Containers) -> None:
    port = _free_port()
    text = "mkdir -p /tmp/w; echo hello > /tmp/w/index.html; httpd -p 80 -h /tmp/w; echo up; sleep 600"
    ports = (JobPort(private=80, public=port),)
    first = container_spec(*shell(text), name="first", network="full", ports=ports)
    second = container_spec(*shell(text), name="second", network="full", ports=ports)
    async with containers(first, second, networks=("full",), publish="127.0.0.1") as executor:
        await executor.start(first)
        async with executor.output(first, 0) as pieces:
            assert (await anext(pieces)).data == b"up\n"
        assert await trio.to_thread.run_sync(_fetch, "127.0.0.1", port) == "hello\n"
        with pytest.raises(ExecutorError) as caught:
            await executor.start(second)
        assert caught.value.code == "failed"
        assert await trio.to_thread.run_sync(_fetch, "127.0.0.1", port) == "hello\n"


async def test_a_job_that_fills_the_disk_is_ended(containers: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_LOOK_SECONDS", 0.5)
    text = "dd if=/dev/zero of=/data/fill bs=1M count=300; echo written; sleep 600"
    spec = container_spec(*shell(text), ram=256 * MIB, disk=20 * MIB)
    async with containers(spec) as executor:
        await executor.start(spec)
        exited = await _exit(executor, spec)
        assert exited.kind == "evicted"
        assert "disk" in exited.message
        async with containers() as restarted:
            assert (await restarted.find(spec)).exit == exited


async def test_a_flood_of_output_is_bounded_where_the_engine_keeps_it(
    containers: Containers, engine: RunningEngine
) -> None:
    spec = container_spec(*shell("yes | head -c 6000000; echo end"))
    async with containers(spec, output_bytes=64 * 1024) as executor:
        await executor.start(spec)
        await _exit(executor, spec)
        logs = [file for file in engine.folder.rglob("*") if file.name.endswith(("-json.log", "ctr.log"))]
        assert logs
        assert sum(file.stat().st_size for file in logs) < MIB


async def test_a_terminal_is_never_made(containers: Containers) -> None:
    said = await _output(containers, container_spec(*shell("test -t 0 || test -t 1 || echo none; printf '\\033[31m'")))
    assert said == "none\n\x1b[31m"


async def test_a_gpu_that_is_not_the_leases_is_not_there(
    containers: Containers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cards of character devices that stand for GPUs; the lease has one."""
    cards = {"0000:01:00.0": "renderD128", "0000:02:00.0": "renderD129"}
    (tmp_path / "dev" / "dri").mkdir(parents=True)
    for number, (address, node) in enumerate(cards.items()):
        (tmp_path / "sys" / "bus" / "pci" / "devices" / address / "drm" / node).mkdir(parents=True)
        os.mknod(tmp_path / "dev" / "dri" / node, 0o666 | 0o020000, os.makedev(1, 3 + 2 * number))
    os.mknod(tmp_path / "dev" / "kfd", 0o666 | 0o020000, os.makedev(1, 8))
    roots = Roots(sys=tmp_path / "sys", dev=tmp_path / "dev")
    monkeypatch.setattr(starting, "plan_devices", partial(plan_devices, roots=roots))
    monkeypatch.setattr(verification, "wrong_devices", partial(wrong_devices, roots=roots))
    amd = GPU(uuid="a", vram=1, vendor=GPUVendor.AMD, pci_address="0000:02:00.0")
    with_one = container_spec(*shell("ls /dev/dri /dev/kfd; mknod /tmp/x c 1 3 || echo no"), name="one", gpus=(amd,))
    assert (await _output(containers, with_one)).split("\n")[:1] == ["/dev/kfd"]
    without = container_spec(*shell("ls /dev/dri /dev/kfd || echo none"), name="none")
    assert "none" in await _output(containers, without)
    # An engine that gives less or more than the lease has is found out.
    monkeypatch.setattr(starting, "create_body", partial(_without_devices, starting.create_body))
    spec = container_spec(*shell("sleep 600"), name="forgotten", gpus=(amd,))
    async with containers(spec) as executor:
        with pytest.raises(ExecutorError, match="did not give /dev/dri/renderD129, /dev/kfd"):
            await executor.start(spec)
        assert (await _exit(executor, spec)).code == 137


def _without_devices(create: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    body = create(*arguments)
    body["HostConfig"]["Devices"] = []
    return body


async def test_limits_that_an_engine_ignores_are_found_out(
    containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = starting.create_body
    for name, field, words in (
        ("memory", "Memory", "its memory is limited"),
        ("swap", "MemorySwap", "its swap is not limited"),
        ("cpu", "NanoCpus", "its CPU is limited"),
    ):

        def without(*arguments: Any, field: str = field) -> dict[str, Any]:
            body = real(*arguments)
            body["HostConfig"][field] = -1 if field == "MemorySwap" else 0
            if field == "Memory":
                body["HostConfig"]["MemorySwap"] = 0
            return body

        monkeypatch.setattr(starting, "create_body", without)
        spec = container_spec(*shell("sleep 600"), name=f"no-{name}")
        async with containers(spec) as executor:
            with pytest.raises(ExecutorError, match=words):
                await executor.start(spec)


def test_the_network_of_the_machine_is_never_entered() -> None:
    with pytest.raises(ExecutorError, match="the network of the machine"):
        open_namespace(os.getpid())


_GET = "(echo 'GET /index.html HTTP/1.0'; echo; sleep 1)"

# A host on the public internet, with an address that is nobody's; and a metadata service on this machine.
PUBLIC = "203.0.113.2"
METADATA = "169.254.169.254"


@pytest.fixture
def internet(tmp_path: Path) -> Iterator[int]:
    """Web servers at a public address, at the metadata address and at the machine's own addresses, on the same port."""
    port = _free_port()
    space = f"dms-test-{os.getpid()}"
    device = f"dmst{os.getpid() % 10**6}"
    root = tmp_path / "web"
    root.mkdir()
    (root / "index.html").write_text("answered\n")
    commands = [
        f"ip netns add {space}",
        f"ip link add {device} type veth peer name {device}p netns {space}",
        f"ip addr add 203.0.113.1/24 dev {device}",
        f"ip link set {device} up",
        f"ip netns exec {space} ip addr add {PUBLIC}/24 dev {device}p",
        f"ip netns exec {space} ip link set {device}p up",
        f"ip netns exec {space} ip link set lo up",
        f"ip netns exec {space} ip route add default via 203.0.113.1",
        f"ip addr add {METADATA}/32 dev {device}",
    ]
    servers = []
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        for prefix in ([], ["ip", "netns", "exec", space]):
            servers.append(subprocess.Popen([*prefix, "busybox", "httpd", "-f", "-p", str(port), "-h", str(root)]))
        yield port
    finally:
        for server in servers:
            server.kill()
            server.wait()
        subprocess.run(["ip", "link", "del", device], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("network", "reached"), [("none", set()), ("outbound", {"public"}), ("full", {"public", "machine", "metadata"})]
)
async def test_what_a_job_reaches(containers: Containers, internet: int, network: str, reached: set[str]) -> None:
    own = _own_address()
    targets = {"public": PUBLIC, "metadata": METADATA, "machine": own, "loopback": "127.0.0.1"}
    text = "; ".join(
        f"{_GET} | nc -w 3 {address} {internet} | grep -q answered && echo {name}" for name, address in targets.items()
    )
    spec = container_spec(*shell(text + "; true"), network=network)
    said = await _output(containers, spec, networks=("none", "outbound", "full"))
    assert {line for line in said.splitlines() if line in targets} == reached


async def test_neighbours_with_networks_of_their_own_do_not_reach_each_other(containers: Containers) -> None:
    text = "mkdir -p /tmp/w; echo hello > /tmp/w/index.html; httpd -p 80 -h /tmp/w; ip -4 -o addr show eth0; sleep 600"
    server = container_spec(*shell(text), name="server", network="outbound")
    async with containers(server, networks=("outbound",)) as executor:
        await executor.start(server)
        with trio.fail_after(DEADLINE):
            async with executor.output(server, 0) as pieces:
                address = (await anext(pieces)).data.decode().split()[3].partition("/")[0]
        assert await trio.to_thread.run_sync(_fetch, address, 80) == "hello\n"
        client = container_spec(
            *shell(f"wget -q -T 3 -O - http://{address}/index.html"), name="client", network="outbound"
        )
        assert "hello" not in await _output(containers, client, networks=("outbound",))


def _own_address() -> str:
    shown = subprocess.run(["ip", "-4", "-o", "addr", "show", "scope", "global"], capture_output=True, check=True)
    words = [line.split() for line in shown.stdout.decode().splitlines()]
    return next(
        one[3].partition("/")[0] for one in words if not one[1].startswith(("docker", "podman", "cni", "dms", "br-"))
    )


def _free_port() -> int:
    import socket

    with socket.create_server(("0.0.0.0", 0)) as server:
        return int(server.getsockname()[1])


def _fetch(address: str, port: int) -> str:
    answer = subprocess.run(
        ["curl", "-s", "--max-time", "5", f"http://{address}:{port}/index.html"], capture_output=True, check=False
    )
    return answer.stdout.decode()
