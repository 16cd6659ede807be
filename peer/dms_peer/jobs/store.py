"""What the peer knows of each job, on the disk before anything of the job is done.

Each job has a directory `jobs/NAME` in the home: `job.json` says how far it is, `document` is the CBOR of its job
document, `output` keeps what it wrote. A record that cannot be read is renamed with a line in the log; what runs of
its job is then ended, for a job without a record has nobody who may ask for it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from dms_protocols.errors import ProtocolError
from dms_protocols.messages.job import MAX_FILES_BYTES, MAX_JOB_BYTES, Job, JobExit, JobState
from dms_protocols.wire.cbor import decode_map
from dms_protocols.wire.conversion import from_map, sealed_bytes
from dms_resources.components import GPU, Port, Resources
from dms_resources.private_files import write_private
from dms_resources.units import decode_value, encode_value

from ..home.state_files import read_state, set_aside

__all__ = ["EndKind", "JobStore", "StoredJob"]

_log = logging.getLogger(__name__)

_LARGEST_RECORD: Final = 256 * 1024
_LARGEST_DOCUMENT: Final = MAX_JOB_BYTES + MAX_FILES_BYTES + 64 * 1024

EndKind = Literal["stopped", "evicted", "expired"]
"""By whose will a job ends before it is done: its holder's, the owner's, or because its lease passed its deadline."""


class StoredJob(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a job is.

    `ran` says that something of it ran. `end` is set when it has to end: by whose will; it may end by itself until
    `end_by` (Unix seconds), which was `end_grace` seconds away. `terminated` says that it was sent a signal to end.
    `gone` is set when nothing of it is left and the ledger knows it. `created`, `since` and `closed` are Unix seconds;
    `closed` is when its lease was found to have ended.
    """

    name: str
    lease_id: str
    holder: str
    fence: int
    executor: str
    digest: str
    resources: Resources
    ports: tuple[Port, ...] = ()
    devices: tuple[GPU, ...] = ()
    created: float
    state: JobState = "pending"
    since: float
    reason: str = ""
    ran: bool = False
    end: EndKind | None = None
    end_reason: str = ""
    end_by: float = 0.0
    end_grace: float = 0.0
    terminated: bool = False
    exit: JobExit | None = None
    output: int = 0
    dropped: int = 0
    gone: bool = False
    closed: float | None = None


class JobStore:
    """The directory of all jobs. Everything here blocks on the disk: call it in a worker thread. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def directory(self, name: str) -> Path:
        """The directory of a job."""
        return self.path / name

    def create(self, record: StoredJob, job: Job) -> None:
        """Makes the directory of a new job durable; the record is written last, for without it nothing counts."""
        directory = self.directory(record.name)
        self.path.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        (directory / "output").mkdir(mode=0o700)
        write_private(directory / "document", sealed_bytes(job))
        self.write(record)

    def write(self, record: StoredJob) -> None:
        """Writes how far a job is."""
        write_private(
            self.directory(record.name) / "job.json",
            msgspec.json.encode(msgspec.to_builtins(record, enc_hook=encode_value)),
        )

    def remove(self, name: str) -> None:
        """Forgets a job: its record first, so that a crash leaves none without its output."""
        directory = self.directory(name)
        (directory / "job.json").unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)

    def load(self) -> Iterator[tuple[StoredJob, Job]]:
        """All jobs that can be read. The directories of others are removed or renamed."""
        if not self.path.is_dir():
            return
        for directory in sorted(self.path.iterdir()):
            # Damaged directories that were renamed stay until the owner looks at them.
            if not directory.is_dir() or ".damaged-" in directory.name:
                continue
            if not (directory / "job.json").exists():
                # A crash came while it was made or removed.
                shutil.rmtree(directory, ignore_errors=True)
                continue
            try:
                yield self._read(directory)
            except (OSError, ProtocolError, msgspec.MsgspecError, ValueError, TypeError) as error:
                set_aside(directory, error)

    def _read(self, directory: Path) -> tuple[StoredJob, Job]:
        raw = msgspec.json.decode(read_state(directory / "job.json", _LARGEST_RECORD))
        record = msgspec.convert(raw, StoredJob, dec_hook=decode_value)
        if record.name != directory.name:
            raise ValueError(f"it is the record of {record.name[:80]!r}")
        return record, from_map(decode_map(read_state(directory / "document", _LARGEST_DOCUMENT)), Job)
