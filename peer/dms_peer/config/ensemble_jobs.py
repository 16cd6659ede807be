"""Reads the jobs of ensemble files: what runs on each node (docs/ensembles.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, get_args

from msgspec import Struct
from msgspec.structs import replace

from dms_protocols.errors import MessageError
from dms_protocols.messages.bid import NodeRequest
from dms_protocols.messages.job import MAX_FILES_BYTES, MAX_JOB_BYTES, Execution, Job, JobFile, JobPort, Network
from dms_protocols.wire.conversion import from_map, to_bytes, to_map
from dms_resources.demands import PortDemand

from ..requesting.node_jobs import NodeJob
from .yaml_fields import Field

__all__ = [
    "checked_job",
    "is_dms_ensemble",
    "read_environment",
    "read_job_file",
    "read_jobs",
    "read_words",
    "valid_job",
    "with_job",
]

_MOST_WORDS: Final = 1024
_LONGEST_WORD: Final = 32_768
_MOST_PORTS: Final = 64
_MOST_FILES: Final = 64
_DYNAMIC: Final = "dynamic"
_NETWORKS: Final[tuple[Network, ...]] = get_args(Network)


class _Port(Struct, frozen=True):
    """A port of a job: published at `public`, at any leased port (`dynamic`), or not at all."""

    private: int
    public: int = 0
    dynamic: bool = False


def is_dms_ensemble(root: Field) -> bool:
    """Whether a file is an ensemble of the DMS (V1)."""
    return bool({"version", "allocations"} & set(root.names()))


def read_jobs(field: Field, nodes: Mapping[str, NodeRequest], folder: Path | None) -> dict[str, NodeJob]:
    """Reads the jobs of nodes by `node_id`, and their files from `folder`. Blocks on disk; raises DocumentError."""
    if not field.is_mapping:
        field.fail("must be a mapping", "write the node_id of each node that runs a job, with its job")
    for name in field.names():
        if name not in nodes:
            field.fail(f"there is no node {name[:64]}", f"use one of {', '.join(nodes)}")
    entries = field.fields(tuple(nodes)).entries
    return {name: _job(entry, nodes[name], folder) for name, entry in entries.items()}


@contextmanager
def valid_job(field: Field) -> Iterator[None]:
    """Raises DocumentError where the messages of a job refuse a value."""
    try:
        yield
    except ValueError as error:
        field.fail(f"invalid job: {error}", "correct the field")


def with_job(node: NodeRequest, job: NodeJob) -> NodeRequest:
    """The node with what its job needs of a provider: the executor, and the ports to publish."""
    asked = node.public_ports
    static = dict.fromkeys((*asked.static, *(port.public for port in job.job.ports if port.public)))
    return replace(
        node,
        executors=node.executors or (job.job.execution.type,),
        public_ports=PortDemand(static=tuple(static), dynamic=max(asked.dynamic, len(job.dynamic))),
    )


def checked_job(field: Field, job: Job) -> Job:
    """The job, if a provider would accept its document. Raises DocumentError."""
    try:
        from_map(to_map(job), Job)
    except MessageError as error:
        field.fail(f"invalid job: {error.message}", "correct the field")
    files = tuple(replace(file, content=b"") for file in job.files)
    size = len(to_bytes(replace(job, files=files)))
    if size > MAX_JOB_BYTES:
        field.fail(f"the job has {size} bytes, more than {MAX_JOB_BYTES}", "put large texts into files")
    return job


def read_words(field: Field) -> tuple[str, ...]:
    """Reads the words of a command. A text is refused, because no shell splits it."""
    if field.is_text:
        field.fail("must be a list", "write each word on its own: [sh, -c, ...]")
    return tuple(word.raw_text(_LONGEST_WORD) for word in field.items(_MOST_WORDS))


def read_environment(field: Field) -> tuple[str, ...]:
    """Reads an environment: entries NAME=VALUE, or a mapping."""
    if not field.is_mapping:
        return tuple(entry.raw_text(_LONGEST_WORD) for entry in field.items(_MOST_WORDS))
    names = field.names()
    entries = field.fields(names).entries
    return tuple(f"{name}={entries[name].raw_text(_LONGEST_WORD)}" for name in names)


def read_job_file(field: Field, path: Field, name: str, folder: Path | None, *, executable: bool) -> JobFile:
    """Reads the file that `path` names, relative to `folder`. Raises DocumentError. Blocks on disk."""
    if folder is None:
        path.fail("names a file, but the ensemble was not read from a file", "write its content")
    place = folder / path.raw_text(4096)
    try:
        with place.open("rb") as file:
            content = file.read(MAX_FILES_BYTES + 1)
    except (OSError, ValueError) as error:
        path.fail(f"cannot read {place}: {getattr(error, 'strerror', None) or error}", "give the path of a file")
    if len(content) > MAX_FILES_BYTES:
        path.fail(f"{place} has more than {MAX_FILES_BYTES} bytes", "fetch large files from within the job")
    return JobFile(name=name, content=content, executable=executable)


def _job(field: Field, node: NodeRequest, folder: Path | None) -> NodeJob:
    with valid_job(field):
        return _valid_job(field, node, folder)


def _valid_job(field: Field, node: NodeRequest, folder: Path | None) -> NodeJob:
    fields = field.fields(("execution", "ports", "files", "network", "remove"), needed=("execution",))
    execution = _execution(fields["execution"])
    if node.executors and execution.type not in node.executors:
        fields["execution"].fail(
            f"the node is for the executors {', '.join(node.executors)}, not for {execution.type}",
            "remove executors from the node, or name this one",
        )
    ports = fields.get("ports", lambda one: tuple(map(_port, one.items(_MOST_PORTS))), ())
    files = fields.get("files", lambda one: [_file(entry, folder) for entry in one.items(_MOST_FILES)], [])
    job = Job(
        execution=execution,
        ports=tuple(JobPort(private=port.private, public=port.public) for port in ports if not port.dynamic),
        files=tuple(files),
        network=fields.get("network", _network, "none"),
        remove=fields.get("remove", Field.flag, False),
    )
    _check_ports(field, ports)
    return NodeJob(job=checked_job(field, job), dynamic=tuple(port.private for port in ports if port.dynamic))


def _execution(field: Field) -> Execution:
    fields = field.fields(("type", "image", "cmd", "entrypoint", "environment", "working_directory"), needed=("type",))
    return Execution(
        type=fields["type"].text(),
        image=fields.get("image", lambda one: one.text(512), ""),
        cmd=fields.get("cmd", read_words, ()),
        entrypoint=fields.get("entrypoint", read_words, ()),
        environment=fields.get("environment", read_environment, ()),
        working_directory=fields.get("working_directory", lambda one: one.text(4096), ""),
    )


def _network(field: Field) -> Network:
    text = field.choice(_NETWORKS)
    return next(network for network in _NETWORKS if network == text)


def _port(field: Field) -> _Port:
    fields = field.fields(("private", "public"), needed=("private",))
    private = fields["private"].whole(1, 65535)
    if "public" in fields and fields["public"].text() == _DYNAMIC:
        return _Port(private, dynamic=True)
    return _Port(private, fields.get("public", lambda one: one.whole(1, 65535), 0))


def _check_ports(field: Field, ports: Iterable[_Port]) -> None:
    seen: set[int] = set()
    for port in ports:
        if port.private in seen:
            field.fail(f"duplicate private port {port.private}", "publish each port once")
        seen.add(port.private)


def _file(field: Field, folder: Path | None) -> JobFile:
    fields = field.fields(("name", "content", "path", "executable"), needed=("name",))
    name, executable = fields["name"].text(), fields.get("executable", Field.flag, False)
    if ("content" in fields) == ("path" in fields):
        field.fail("needs either content or path", "write the content, or the path of a file")
    if "path" in fields:
        return read_job_file(field, fields["path"], name, folder, executable=executable)
    content = fields["content"].raw_text(MAX_FILES_BYTES).encode()
    return JobFile(name=name, content=content, executable=executable)
