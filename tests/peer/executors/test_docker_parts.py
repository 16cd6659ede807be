"""The parts of the docker executor that need no engine: names, bodies, frames, exits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_peer.executors.docker.create_body import ContainerPlan, create_body
from dms_peer.executors.docker.exits import MemoryEvidence, container_exit
from dms_peer.executors.docker.output_frames import OutputFrames
from dms_peer.executors.docker.references import is_allowed, parse_image
from dms_peer.executors.executor import ExecutorError
from dms_peer.executors.settings import DockerSettings
from dms_protocols.messages.job import JobExit, JobPort
from dms_resources.components import GPU, GPUVendor
from dms_resources.units import MIB
from executor_jobs import container_spec

DIGEST = f"sha256:{'a' * 64}"


def test_the_whole_body_is_ours() -> None:
    spec = container_spec(
        "sh",
        "-c",
        "--privileged",
        ram=64 * MIB,
        millicores=1500,
        environment=("A=B=C\nD", "NAME="),
        ports=(JobPort(private=80, public=20000), JobPort(private=81)),
        entrypoint=("env",),
        working_directory="/w",
        network="full",
    )
    plan = ContainerPlan(
        image=DIGEST, network="bridge", volumes=("/data",), cgroup_parent="/dms-jobs/x", files="/home/files", disk=10
    )
    settings = DockerSettings(processes=32, publish="192.0.2.7", capabilities="packages", read_only=True, scratch=4096)
    mount = "rw,exec,nosuid,nodev,size=4096,mode=1777"
    assert create_body(spec, settings, plan) == {
        "Image": DIGEST,
        "Cmd": ["sh", "-c", "--privileged"],
        "Entrypoint": ["env"],
        "WorkingDir": "/w",
        "Env": ["A=B=C\nD", "NAME=", "NVIDIA_VISIBLE_DEVICES=void", f"DMS_JOB={spec.name}"],
        "Labels": {
            "dms.v": "1",
            "dms.peer": spec.peer_id,
            "dms.home": "home",
            "dms.lease": "lease",
            "dms.fence": "1",
            "dms.digest": spec.digest.hex(),
            "dms.created": "1.0",
        },
        "Hostname": "job",
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {
            "Memory": 64 * MIB,
            "MemorySwap": 64 * MIB,
            "NanoCpus": 1_500_000_000,
            "PidsLimit": 32,
            "Ulimits": [
                {"Name": "nofile", "Soft": 1024, "Hard": 1024},
                {"Name": "nproc", "Soft": 32, "Hard": 32},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "ShmSize": 32 * MIB,
            "CapDrop": ["ALL"],
            "CapAdd": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"],
            "SecurityOpt": ["no-new-privileges"],
            "Privileged": False,
            "ReadonlyRootfs": True,
            "Tmpfs": {"/data": mount, "/run": mount, "/tmp": mount, "/var/tmp": mount},
            "NetworkMode": "bridge",
            "PortBindings": {"80/tcp": [{"HostIp": "192.0.2.7", "HostPort": "20000"}]},
            "Devices": [],
            "DeviceRequests": [],
            "Sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": str(32 * MIB)}},
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "Init": True,
            "OomScoreAdj": 500,
            "IpcMode": "private",
            "Binds": ["/home/files:/dms:ro"],
            "CgroupParent": "/dms-jobs/x",
            "StorageOpt": {"size": "10"},
        },
    }


def test_a_lease_with_nvidia_gpus_names_them_by_uuid() -> None:
    gpus = (GPU(uuid="GPU-1", vram=1, vendor=GPUVendor.NVIDIA), GPU(uuid="GPU-2", vram=1, vendor=GPUVendor.NVIDIA))
    body = create_body(container_spec("x", gpus=gpus), DockerSettings(), ContainerPlan(image=DIGEST))
    assert "NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2" in body["Env"]


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50)), max_size=10), st.data())
def test_frames_come_in_any_parts(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    encoded = b"".join(bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload for kind, payload in frames)
    whole = b"".join(payload for _, payload in frames)
    skip = data.draw(st.integers(0, len(whole) + 3))
    reader = OutputFrames(skip)
    found: list[Any] = []
    while encoded:
        size = data.draw(st.integers(1, len(encoded)))
        found += reader.feed(encoded[:size])
        encoded = encoded[size:]
    assert b"".join(piece.data for piece in found) == whole[skip:]
    if not skip:
        for stream, number in (("stdout", 1), ("stderr", 2)):
            expected = b"".join(payload for kind, payload in frames if kind == number)
            assert b"".join(piece.data for piece in found if piece.stream == stream) == expected


@pytest.mark.parametrize("garbage", [b"hello world", b"\x03\0\0\0\0\0\0\x01x", b"\x01\0\x01\0\0\0\0\x01x"])
def test_output_without_frames_is_an_error(garbage: bytes) -> None:
    with pytest.raises(ExecutorError):
        list(OutputFrames().feed(garbage))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("docker.io/python:3.12", "docker.io/library/python:3.12"),
        ("docker.io/library/python", "docker.io/library/python:latest"),
        ("ghcr.io/a/b/c:v1.0_x-y", "ghcr.io/a/b/c:v1.0_x-y"),
        ("localhost/tiny:1", "localhost/tiny:1"),
        ("localhost:5000/tiny", "localhost:5000/tiny:latest"),
        ("registry:5000/a", "registry:5000/a:latest"),
        (f"quay.io/a/b@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
        (f"quay.io/a/b:1@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
    ],
)
def test_names_of_images(text: str, name: str) -> None:
    assert str(parse_image(text)) == name


@pytest.mark.parametrize(
    "text",
    [
        "", "python", "python:3.12", "library/python", "8c3cace1444b", DIGEST, "a" * 64, "localhost", "localhost/",
        "/etc/passwd", "../x", "dir:/etc", "dir:/etc/x", "oci-archive:/tmp/x.tar", "docker-archive:x", "docker://docker.io/a",
        "http://example.com/a", "docker.io//a", "docker.io/a/", "docker.io/../a", "docker.io/a:", "docker.io/A",
        "DOCKER.IO/a", "docker.io/a b", "docker.io/a\nb", "docker.io/a\0", "docker.io/a:b:c", "docker.io/a@sha256:1",
        f"docker.io/a@{DIGEST}x", f"docker.io/a@sha512:{'a' * 128}", "--privileged", "-v/:/x", "docker.io/--x",
        "docker.io/a;b", "docker.io/$(id)", "docker.io/a?x=1", "docker.io/a#x", "docker.io/a%2fb", "docker.io/é",
        "[::1]:5000/a", "user@docker.io/a", "docker.io:port/a", "docker.io/" + "a" * 600, "docker.io/a:" + "t" * 129,
    ],
)  # fmt: skip
def test_what_is_not_the_name_of_an_image(text: str) -> None:
    with pytest.raises(ValueError, match=r"image|registry|digest"):
        parse_image(text)


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("docker.io/library/*", "docker.io/python:3", "docker.io/a/b"),
        ("docker.io/library/python:3.*", "docker.io/python:3.12", f"docker.io/python@{DIGEST}"),
        ("*.example.com/a/*", "x.example.com/a/b", "example.com.evil.org/a/b"),
        (f"quay.io/a/b@{DIGEST}", f"quay.io/a/b:9@{DIGEST}", "quay.io/a/b:9"),
        ("quay.io/a", f"quay.io/a@{DIGEST}", "quay.io/a/b"),
        ("localhost/tiny:1", "localhost/tiny:1", "localhost/tiny:10"),
    ],
)
def test_patterns_of_an_owner(pattern: str, allowed: str, refused: str) -> None:
    assert is_allowed(parse_image(allowed), (pattern,))
    assert not is_allowed(parse_image(refused), (pattern,))
    assert not is_allowed(parse_image(allowed), ())


LIMIT = 100 * MIB


@pytest.mark.parametrize(
    ("state", "evidence", "exceeded", "exited"),
    [
        ({"ExitCode": 0}, (0, 0), False, JobExit(kind="code", code=0)),
        ({"ExitCode": 137}, (0, 50 * MIB), False, JobExit(kind="code", code=137)),
        ({"ExitCode": 137, "OOMKilled": True}, (0, 0), False, JobExit(kind="memory", signal=9, oom_kills=1)),
        ({"ExitCode": 137}, (3, 0), False, JobExit(kind="memory", signal=9, oom_kills=3)),
        ({"ExitCode": 137}, (0, LIMIT), False, JobExit(kind="memory", signal=9, oom_kills=1)),
        # A child was killed, and the job went on.
        ({"ExitCode": 0, "OOMKilled": True}, (1, LIMIT), False, JobExit(kind="code", code=0, oom_kills=1)),
        ({"ExitCode": 143}, (0, 0), False, JobExit(kind="code", code=143)),
    ],
)
def test_how_a_container_ended(
    state: dict[str, Any], evidence: tuple[int, int], exceeded: bool, exited: JobExit
) -> None:
    assert container_exit(state, MemoryEvidence(*evidence), LIMIT, exceeded) == exited


def test_a_disk_that_was_exceeded_is_the_owners_reason() -> None:
    assert container_exit({"ExitCode": 137}, MemoryEvidence(), LIMIT, True).kind == "evicted"


def test_a_body_is_json() -> None:
    assert json.loads(json.dumps(create_body(container_spec("x"), DockerSettings(), ContainerPlan(image=DIGEST))))
