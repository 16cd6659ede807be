"""The body with which a container is created.

It is built from our own fields, one by one: nothing of a job document is merged into it. Privileges, mounts, namespaces
and devices that are not the lease's cannot be expressed in a document at all (tests hold the whole body).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dms_resources.components import GPUVendor
from dms_resources.units import MIB

from ..executor import JobSpec
from ..settings import CAPABILITY_PROFILES, DockerSettings

__all__ = ["FILES_FOLDER", "LABEL", "ContainerPlan", "create_body", "job_labels", "refused_variable"]

LABEL: Final = "dms."
"""The beginning of our labels."""

FILES_FOLDER: Final = "/dms"
"""The folder of the job's files in the container."""

_OPEN_FILES: Final = 1024
_OOM_SCORE: Final = 500
_LEAST_SHARED_MEMORY: Final = 1 * MIB
# Root hooks of container runtimes read these from the environment of a job.
_REFUSED: Final = ("NVIDIA_", "LD_PRELOAD", "LD_AUDIT", "DMS_")


class ContainerPlan(NamedTuple):
    """What is decided before a container is created.

    `image` is the id of an image that is there, `volumes` the folders that it declares. `network` is the engine's name
    of a network, `cgroup_parent` "" for the engine's own. `device_requests` and `devices` give the lease's GPUs.
    `files` is a folder of the machine that the job sees read-only, "" for none. `disk` bounds the writable layer, in
    bytes, 0 where the engine cannot.
    """

    image: str
    network: str = "none"
    volumes: tuple[str, ...] = ()
    cgroup_parent: str = ""
    device_requests: tuple[Mapping[str, Any], ...] = ()
    devices: tuple[Mapping[str, str], ...] = ()
    files: str = ""
    disk: int = 0


def refused_variable(spec: JobSpec) -> str:
    """The first variable of the job that would be read by others than the job; "" for none."""
    names = (entry.partition("=")[0] for entry in spec.job.execution.environment)
    return next((name for name in names if name.startswith(_REFUSED)), "")


def job_labels(spec: JobSpec) -> dict[str, str]:
    """The labels by which a job is found again. A document adds none."""
    return {
        f"{LABEL}v": "1",
        f"{LABEL}peer": spec.peer_id,
        f"{LABEL}home": spec.home_id,
        f"{LABEL}lease": spec.lease_id,
        f"{LABEL}fence": str(spec.fence),
        f"{LABEL}digest": spec.digest.hex(),
        f"{LABEL}created": repr(spec.created),
    }


def create_body(spec: JobSpec, settings: DockerSettings, plan: ContainerPlan) -> dict[str, Any]:
    """Returns the whole body."""
    execution = spec.job.execution
    published = [port for port in spec.job.ports if port.public]
    body: dict[str, Any] = {
        "Image": plan.image,
        "Cmd": list(execution.cmd),
        "Env": _environment(spec),
        "Labels": job_labels(spec),
        "Hostname": "job",
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "ExposedPorts": {f"{port.private}/tcp": {} for port in published},
        "HostConfig": _host_config(spec, settings, plan),
    }
    if execution.entrypoint:
        body["Entrypoint"] = list(execution.entrypoint)
    if execution.working_directory:
        body["WorkingDir"] = execution.working_directory
    return body


def _environment(spec: JobSpec) -> list[str]:
    """NAME=VALUE entries: an entry without `=` would be filled from the engine's own environment. Ours come last."""
    entries = dict(entry.split("=", 1) for entry in spec.job.execution.environment)
    nvidia = [gpu.uuid for gpu in spec.devices if gpu.vendor is GPUVendor.NVIDIA]
    entries["NVIDIA_VISIBLE_DEVICES"] = ",".join(nvidia) or "void"
    entries["DMS_JOB"] = spec.name
    return [f"{name}={value}" for name, value in entries.items()]


def _host_config(spec: JobSpec, settings: DockerSettings, plan: ContainerPlan) -> dict[str, Any]:
    memory = spec.resources.ram.size
    config: dict[str, Any] = {
        "Memory": memory,
        # The sum of memory and swap: equal to Memory it allows no swap, left out it allows as much again.
        "MemorySwap": memory,
        "NanoCpus": spec.resources.cpu.cores.millicores * 10**6,
        "PidsLimit": settings.processes,
        "Ulimits": [
            {"Name": "nofile", "Soft": _OPEN_FILES, "Hard": _OPEN_FILES},
            {"Name": "nproc", "Soft": settings.processes, "Hard": settings.processes},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "ShmSize": max(_LEAST_SHARED_MEMORY, memory // 2),
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITY_PROFILES[settings.capabilities]),
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "ReadonlyRootfs": settings.read_only,
        "Tmpfs": _tmpfs(settings, plan),
        "NetworkMode": plan.network,
        "PortBindings": {
            f"{port.private}/tcp": [{"HostIp": settings.publish, "HostPort": str(port.public)}]
            for port in spec.job.ports
            if port.public
        },
        "Devices": [dict(device) for device in plan.devices],
        "DeviceRequests": [dict(request) for request in plan.device_requests],
        # Without capabilities a job could not listen on ports below 1024 otherwise.
        "Sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": str(2 * settings.output_bytes)}},
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "Init": True,
        "OomScoreAdj": _OOM_SCORE,
        "IpcMode": "private",
        "Binds": [f"{plan.files}:{FILES_FOLDER}:ro"] if plan.files else [],
    }
    if plan.cgroup_parent:
        config["CgroupParent"] = plan.cgroup_parent
    if plan.disk:
        config["StorageOpt"] = {"size": str(plan.disk)}
    return config


def _tmpfs(settings: DockerSettings, plan: ContainerPlan) -> dict[str, str]:
    """Memory for what an image wants to write to beside its root. Engines bound none of it by themselves."""
    folders = {*plan.volumes, *(("/tmp", "/run", "/var/tmp") if settings.read_only else ())}
    return dict.fromkeys(sorted(folders), f"rw,exec,nosuid,nodev,size={settings.scratch},mode=1777")
