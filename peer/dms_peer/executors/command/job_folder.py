"""The folder of one job: what the peer wrote before its start, and what its supervisor wrote since.

Every function blocks on the disk. A lock says whether the supervisor lives; a process id alone never does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from dms_protocols.messages.job import JobExit
from dms_resources.private_files import write_private

from ..executor import FoundJob, JobSpec
from . import job_files, processes
from .groups import JobGroups, remove_groups
from .input_document import input_document

__all__ = ["JobFolder", "JobRecord"]


class JobRecord(Struct, frozen=True, kw_only=True):
    """What is durable before a job begins; the supervisor reads the same file."""

    name: str
    peer_id: str
    home_id: str
    lease_id: str
    fence: int
    digest: str
    created: float
    argv: tuple[str, ...]
    environment: dict[str, str]
    groups: tuple[str, ...]
    group_name: str
    ready_seconds: float
    output_bytes: int
    output_rate: int


class JobFolder:
    """One job's folder; it need not be there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self) -> JobRecord | None:
        """What was written before the start; None where there is no such job, or its start was never reached."""
        try:
            return msgspec.json.decode((self.path / job_files.JOB).read_bytes(), type=JobRecord)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def prepare(self, spec: JobSpec, record: JobRecord, groups: JobGroups) -> None:
        """Writes everything that a start needs, the record last. Raises OSError."""
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in (self.path, self.path / "files", self.path / "work"):
            folder.mkdir(mode=0o700, parents=True)
        for file in spec.job.files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(self.path / "files" / file.name, flags, 0o500 if file.executable else 0o400)
            with os.fdopen(target, "wb") as stream:
                stream.write(file.content)
        write_private(self.path / "input.json", input_document(spec, self.path, groups.name))
        write_private(self.path / job_files.JOB, msgspec.json.encode(record))

    def is_supervised(self) -> bool:
        """Whether a supervisor of this job lives."""
        with self._locked() as taken:
            return not taken

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Holds the job's lock, so that no supervisor begins; whether it could be taken."""
        try:
            lock = os.open(self.path / job_files.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            yield True
            return
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(lock)

    def find(self) -> FoundJob | None:
        """The job as it is now. What a dead supervisor left running is killed before the job is called lost."""
        record = self.record()
        if record is None:
            return None
        process = self._read(job_files.PROCESS)
        supervised = self.is_supervised()
        # Read after the lock: the supervisor writes it before it releases the lock.
        ended = self._read(job_files.EXIT)
        if ended is None and process is not None and not supervised:
            if process.get("boot") == processes.boot_id() and not self.kill():
                return self._found(record, process, "running")
            ended = {"kind": "lost", "message": "its supervisor ended, and its exit was not seen"}
            job_files.write_file(self.path / job_files.EXIT, ended)
        if ended is not None:
            found = {name: value for name, value in ended.items() if name != "at"}
            return self._found(record, process, "exited", msgspec.convert(found, JobExit))
        ready = process is not None and (self.path / job_files.READY).exists()
        return self._found(record, process, "running" if ready else "created")

    def _found(
        self, record: JobRecord, process: dict[str, Any] | None, state: Any, ended: JobExit | None = None
    ) -> FoundJob:
        pid, ticks = (process["pid"], process["started"]) if process and state != "exited" else (None, None)
        return FoundJob(
            name=record.name,
            lease_id=record.lease_id,
            fence=record.fence,
            digest=bytes.fromhex(record.digest),
            created=record.created,
            state=state,
            exit=ended,
            pid=pid,
            started=ticks / os.sysconf("SC_CLK_TCK") if ticks is not None else None,
            cgroup=record.group_name or None,
        )

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return json.loads((self.path / name).read_bytes())  # type: ignore[no-any-return]
        except (FileNotFoundError, NotADirectoryError):
            return None

    def endpoints(self) -> list[dict[str, Any]]:
        """Where the job's ports are, as its program said; unchecked."""
        said = (self._read(job_files.READY) or {}).get("endpoints")
        return [one for one in said if isinstance(one, dict)] if isinstance(said, list) else []

    def open_supervisor(self) -> int | None:
        """A descriptor of the supervisor's process, readable when it has ended; None where it has."""
        return _open_process(self._read(job_files.SUPERVISOR))

    def send_signal(self, number: int) -> None:
        """Sends a signal to the job's first process, unless it is gone."""
        descriptor = _open_process(self._read(job_files.PROCESS))
        if descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            os.close(descriptor)

    def kill(self) -> bool:
        """Kills all processes of the job once; whether there were none."""
        record = self.record()
        if record is None:
            return True
        descriptor = self.open_supervisor()
        supervising = (self._read(job_files.SUPERVISOR) or {}).get("pid") if descriptor is not None else None
        if descriptor is not None:
            os.close(descriptor)
        return processes.kill_job(list(record.groups), record.name, supervising)

    def end_supervisor(self) -> None:
        """Kills the supervisor, which has nothing left to supervise."""
        descriptor = self.open_supervisor()
        if descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)

    def remove(self) -> bool:
        """Removes the groups and the folder of a job that does not run; whether they are gone."""
        with self._locked() as taken:
            if not taken:
                return False
            record = self.record()
            if record is not None and not remove_groups(record.groups):
                return False
            # The record last, so that what is half removed is found again.
            for name in _names(self.path):
                if name not in (job_files.JOB, job_files.LOCK):
                    _remove(self.path / name)
            for name in (job_files.JOB, job_files.LOCK):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self.path.rmdir()
        return True


def _open_process(found: dict[str, Any] | None) -> int | None:
    if found is None:
        return None
    try:
        descriptor = os.pidfd_open(found["pid"])
    except OSError:
        return None
    # The number may belong to a later process; while the descriptor is open it cannot be given out again.
    if processes.start_ticks(found["pid"]) == found["started"]:
        return descriptor
    os.close(descriptor)
    return None


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
