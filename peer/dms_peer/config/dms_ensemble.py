"""Reads ensembles of the DMS (V1) as they are.

Rules:

1. Each allocation becomes one node with one job. The allocations of one DMS node share a machine there; here this is
   certain only where the node names its peer.
2. A size without a unit is in GiB, as in the DMS's present documentation. A warning says so.
3. What cannot be done here is refused at its line: overlay subnets, volumes, health checks, dependencies, edges and so
   on. Nothing is left out in silence: what only loses a comfort is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NoReturn

from msgspec import Struct

from dms_protocols.messages.bid import MAX_GPUS, MAX_NODES, MAX_PORTS, Location, NodeRequest, Place
from dms_protocols.messages.job import Execution, Job, JobFile, JobPort
from dms_resources.components import GPUVendor
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.units import GIB

from ..requesting.node_jobs import NodeJob
from .ensemble_jobs import checked_job, read_environment, read_job_file, read_words, valid_job, with_job
from .yaml_fields import Field, Fields, read_peer_id

__all__ = ["DMSEnsemble", "read_dms_ensemble"]

_MOST_EXCLUDED: Final = 1024
_MOST_PLACES: Final = 64
_BARE: Final = re.compile(r"([0-9]{1,9})(?:\.[0-9]{1,9})?")
_LARGEST: Final = 2**63 - 1
_EMPTY: Final = frozenset({"", "null", "~", "false"})

_ROOT: Final = (
    "version", "allocations", "nodes", "exclude_peers", "metadata", "escalation_strategy", "scripts", "keys", "edges",
    "edge_constraints", "supervisor", "subnet", "contracts",
)  # fmt: skip
_ALLOCATION: Final = (
    "type", "executor", "resources", "execution", "dns_name", "keys", "provision", "healthcheck", "volume", "volumes",
    "failure_recovery", "depends_on",
)  # fmt: skip
_NODE: Final = ("allocations", "ports", "location", "peer", "redundancy", "failure_recovery")
_EXECUTION: Final = (
    "type", "image", "cmd", "entrypoint", "environment", "working_directory", "privileged", "registry_auth",
)  # fmt: skip


class DMSEnsemble(Struct, frozen=True, kw_only=True):
    """What an ensemble of the DMS asks for; `entries` has the field of each node, for errors."""

    nodes: tuple[NodeRequest, ...]
    entries: tuple[Any, ...]
    jobs: dict[str, NodeJob]
    pins: dict[str, str]
    peer_exclusion: tuple[str, ...]
    warnings: tuple[str, ...]


def read_dms_ensemble(root: Field, folder: Path | None) -> DMSEnsemble:
    """Reads an ensemble of the DMS; its scripts are read from `folder`. Raises DocumentError. Blocks on disk."""
    return _Reader(root, folder).read()


class _Reader:
    def __init__(self, root: Field, folder: Path | None) -> None:
        self._folder = folder
        self._root = root
        self._fields = root.fields(_ROOT, needed=("version", "allocations", "nodes"))
        self._warnings: dict[str, None] = {}

    def read(self) -> DMSEnsemble:
        fields = self._fields
        if fields["version"].text().upper() != "V1":
            fields["version"].fail(f"{fields['version'].text()[:20]} is not V1", "write V1")
        for name, reason in (
            ("edges", "distances between nodes are not measured"),
            ("edge_constraints", "distances between nodes are not measured"),
            ("supervisor", "jobs are not supervised"),
            ("contracts", "there are no contracts"),
        ):
            _refuse_unless_empty(fields, name, reason, "remove it")
        self._check_subnet()
        if fields.get("escalation_strategy", Field.text, "teardown") != "teardown":
            self._warn(fields["escalation_strategy"], "a lost node ends the whole deployment, as with teardown")
        scripts = self._scripts()
        allocations = _named(fields["allocations"], "an allocation")
        nodes, entries, jobs, pins, used = [], [], {}, {}, set()
        for name, node in _named(fields["nodes"], "a node").items():
            parts = node.fields(_NODE, needed=("allocations",))
            members = parts["allocations"].texts(MAX_NODES)
            self._check_node(parts)
            if len(members) > 1 and "peer" not in parts:
                parts["allocations"].fail(
                    f"{len(members)} allocations are to share a machine, which no bid promises",
                    "name the peer of the node, or give each allocation a node of its own",
                )
            peer = parts.get("peer", read_peer_id, "")
            location = parts.get("location", _location, Location())
            for member in members:
                if member not in allocations:
                    parts["allocations"].fail(f"there is no allocation {member[:64]}", "define it in allocations")
                if member in used:
                    parts["allocations"].fail(f"the allocation {member[:64]} is on two nodes", "use it once")
                used.add(member)
                node_id = name if len(members) == 1 else member
                request, job = self._allocation(
                    allocations[member], node_id, location, self._ports(parts, member), scripts
                )
                nodes.append(with_job(request, job))
                entries.append(node)
                jobs[node_id] = job
                if peer:
                    pins[node_id] = peer
        if not nodes:
            fields["nodes"].fail("is empty", "write at least one node")
        if unused := allocations.keys() - used:
            fields["allocations"].fail(f"no node has the allocation {min(unused)}", "add it to a node, or remove it")
        return DMSEnsemble(
            nodes=tuple(nodes),
            entries=tuple(entries),
            jobs=jobs,
            pins=pins,
            peer_exclusion=fields.get(
                "exclude_peers", lambda one: tuple(map(read_peer_id, one.items(_MOST_EXCLUDED))), ()
            ),
            warnings=tuple(self._warnings),
        )

    # The whole

    def _check_subnet(self) -> None:
        if "subnet" not in self._fields:
            return
        parts = self._fields["subnet"].fields(("join",))
        if parts.get("join", Field.flag, False):
            parts["join"].fail(
                "there are no overlay subnets here", "write join: false, and reach ports with `dms-peer forward`"
            )

    def _scripts(self) -> tuple[JobFile, ...]:
        fields = self._fields
        _refuse_unless_empty(fields, "keys", "keys are not put into jobs", "bake them into the image")
        if "scripts" not in fields:
            return ()
        scripts = _named(fields["scripts"], "a script")
        if scripts:
            self._warn(fields["scripts"], "each script is the file /dms/NAME of every job")
        found = []
        for name, script in scripts.items():
            with valid_job(script):
                found.append(read_job_file(script, script, name, self._folder, executable=True))
        return tuple(found)

    # Nodes

    def _check_node(self, parts: Fields) -> None:
        if parts.get("redundancy", lambda one: one.whole(0, 1000), 0):
            parts["redundancy"].fail("there are no standby nodes", "write 0")
        if parts.get("failure_recovery", Field.text, "stay_down") != "stay_down":
            parts["failure_recovery"].fail("a lost node is not replaced", "write stay_down")

    def _ports(self, parts: Fields, member: str) -> list[tuple[int, int]]:
        """The ports of an allocation: the private and the public one, which is 0 where the provider chooses."""
        found: list[tuple[int, int]] = []
        for entry in parts["ports"].items(MAX_PORTS) if "ports" in parts else ():
            port = entry.fields(("public", "private", "allocation"), needed=("private", "allocation"))
            if port["allocation"].text() not in parts["allocations"].texts(MAX_NODES):
                port["allocation"].fail("is not an allocation of this node", "name one of them")
            if port["allocation"].text() == member:
                public = port.get("public", lambda one: one.whole(0, 65535), 0)
                found.append((port["private"].whole(1, 65535), public))
        return found

    # Allocations

    def _allocation(
        self, field: Field, node_id: str, location: Location, ports: list[tuple[int, int]], scripts: tuple[JobFile, ...]
    ) -> tuple[NodeRequest, NodeJob]:
        parts = field.fields(_ALLOCATION, needed=("executor", "resources", "execution"))
        for name, reason, hint in (
            ("keys", "keys are not put into jobs", "bake them into the image"),
            ("provision", "scripts are not run before a job", "call /dms/NAME in cmd"),
            ("healthcheck", "jobs are not checked", "remove it"),
            ("volume", "jobs have no volumes", "remove it"),
            ("volumes", "jobs have no volumes", "remove it"),
            ("depends_on", "jobs start together", "remove it"),
        ):
            _refuse_unless_empty(parts, name, reason, hint)
        parts.get("type", lambda one: one.choice(("service", "task")), "task")
        if parts.get("failure_recovery", Field.text, "stay_down") != "stay_down":
            parts["failure_recovery"].fail("a job that ended is not started again", "write stay_down")
        if "dns_name" in parts:
            self._warn(parts["dns_name"], "jobs do not find each other by name")
        execution = self._execution(parts["execution"])
        if parts["executor"].text() != execution.type:
            parts["executor"].fail(f"differs from the type {execution.type} of its execution", "write the same")
        with valid_job(field):
            job = Job(
                execution=execution,
                ports=tuple(JobPort(private=private, public=public) for private, public in ports if public),
                files=scripts,
                network="outbound",
            )
        request = NodeRequest(node_id=node_id, resources=self._resources(parts["resources"]), location=location)
        dynamic = tuple(private for private, public in ports if not public)
        return request, NodeJob(job=checked_job(field, job), dynamic=dynamic)

    def _execution(self, field: Field) -> Execution:
        parts = field.fields(_EXECUTION, needed=("type",))
        kind = parts["type"].text()
        if kind == "firecracker":
            parts["type"].fail("there are no virtual machines here", "use docker")
        if parts.get("privileged", Field.flag, False):
            parts["privileged"].fail("no job is privileged", "remove it")
        _refuse_unless_empty(parts, "registry_auth", "passwords are not sent to providers", "use a public image")
        with valid_job(field):
            return Execution(
                type=kind,
                image=parts.get("image", lambda one: one.text(512), ""),
                cmd=parts.get("cmd", read_words, ()),
                entrypoint=parts.get("entrypoint", read_words, ()),
                environment=parts.get("environment", read_environment, ()),
                working_directory=parts.get("working_directory", lambda one: one.raw_text(4096), ""),
            )

    def _resources(self, field: Field) -> Demand:
        parts = field.fields(("cpu", "ram", "disk", "gpus"), needed=("cpu", "ram", "disk"))
        cpu = parts["cpu"].fields(("cores", "clock_speed", "architecture", "vendor", "model"), needed=("cores",))
        for name in ("vendor", "model"):
            _refuse_unless_empty(cpu, name, "a CPU is requested by cores, clock speed and architecture", "remove it")
        gpus = parts["gpus"].items(MAX_GPUS) if "gpus" in parts and not _is_empty(parts["gpus"]) else []
        return Demand(
            cpu=CPUDemand(
                cores=cpu["cores"].cores(),
                architecture=cpu.get("architecture", Field.text, ""),
                clock_speed=cpu.get("clock_speed", lambda one: one.whole(0, _LARGEST), 0),
            ),
            ram=RAMDemand(size=self._only_size(parts["ram"])),
            disk=DiskDemand(size=self._only_size(parts["disk"])),
            gpus=tuple(map(self._gpu, gpus)),
        )

    def _gpu(self, field: Field) -> GPUDemand:
        parts = field.fields(("vendor", "model", "vram", "index"), needed=("vram",))
        if "index" in parts:
            self._warn(parts["index"], "a GPU is requested by its vendor, model and VRAM, not by its number")
        vendors = [vendor.value for vendor in GPUVendor if vendor is not GPUVendor.NONE]
        return GPUDemand(
            vram=self._size(parts["vram"]),
            vendor=GPUVendor(parts.get("vendor", lambda one: one.choice(vendors), GPUVendor.UNKNOWN.value)),
            model=parts.get("model", Field.text, ""),
        )

    def _only_size(self, field: Field) -> int:
        return self._size(field.fields(("size",), needed=("size",))["size"])

    def _size(self, field: Field) -> int:
        text = field.text()
        if not _BARE.fullmatch(text):
            return field.size()
        self._warnings["sizes without a unit are read as GiB, as by the present DMS; older ones meant MB"] = None
        return int(Decimal(text) * GIB)

    def _warn(self, field: Field, sentence: str) -> None:
        self._warnings[f"{field.node.position}: {field.path}: {sentence}"] = None


def _named(field: Field, what: str) -> Mapping[str, Field]:
    if not field.is_mapping:
        field.fail("must be a mapping", f"write the name of {what}, and its fields")
    return field.fields(field.names()).entries


def _is_empty(field: Field) -> bool:
    if field.is_text:
        return field.raw_text(1 << 20) in _EMPTY
    return not (field.names() if field.is_mapping else field.items(1 << 20))


def _refuse_unless_empty(fields: Fields, name: str, reason: str, hint: str) -> None:
    if name in fields and not _is_empty(fields[name]):
        _fail(fields[name], reason, hint)


def _fail(field: Field, reason: str, hint: str) -> NoReturn:
    field.fail(f"cannot be done here: {reason}", hint)


def _location(field: Field) -> Location:
    parts = field.fields(("accept", "reject"))
    read: Callable[[Field], tuple[Place, ...]] = lambda one: tuple(map(_place, one.items(_MOST_PLACES)))  # noqa: E731
    return Location(accept=parts.get("accept", read, ()), reject=parts.get("reject", read, ()))


def _place(field: Field) -> Place:
    parts = field.fields(("continent", "country", "city", "asn", "isp"))
    for name in ("asn", "isp"):
        _refuse_unless_empty(parts, name, "providers do not say which network they are in", "remove it")
    found = {name: parts[name].text() for name in ("continent", "country", "city") if name in parts}
    if not found:
        field.fail("is empty", "write continent, country or city")
    return Place(**found)
