"""The process that runs one program of the owner's for one job, and outlives the peer.

The peer starts it with the job's folder as its argument. It detaches itself and then:

1. takes the lock of the folder, so that no job has two supervisors;
2. makes a child that joins the job's cgroups and waits; writes the child's number and start; lets it run the program;
3. reads `ready` from the first line of standard output, and keeps what follows in files of bounded size;
4. when the program has exited, kills everything that it started, and writes how it exited.

What happened is in files, each written whole and synced before the next step: so it is known after a crash of the peer,
of this process, or of the machine. The module uses the standard library only, because it is started with an empty
module path. Memory: about 10 MiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = [
    "EXIT",
    "JOB",
    "JOB_MARK",
    "LOCK",
    "OUTPUT",
    "PROCESS",
    "READY",
    "RECORD_HEAD",
    "SEGMENTS",
    "SUPERVISOR",
    "OutputFiles",
    "boot_id",
    "kill_job",
    "main",
    "oom_kills",
    "start_ticks",
    "write_file",
]

JOB: Final = "job.json"
LOCK: Final = "lock"
SUPERVISOR: Final = "supervisor.json"
PROCESS: Final = "process.json"
READY: Final = "ready.json"
EXIT: Final = "exit.json"
OUTPUT: Final = "output"
JOB_MARK: Final = "DMS_JOB"
"""The environment variable that marks what a job started, with the job's name."""

RECORD_HEAD: Final = 5
"""Bytes before each piece of output: 1 or 2 for its stream, and its length in 4 bytes."""

SEGMENTS: Final = 8
"""Into how many files the kept output is divided. The first is kept, and of the others the last ones."""

_PIECE: Final = 64 * 1024
_LONGEST_READY: Final = 64 * 1024
_LOCK_TRIES: Final = 100
_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
_REAP_SECONDS: Final = 5.0
_DRAIN_SECONDS: Final = 5.0
_PR_SET_CHILD_SUBREAPER: Final = 36


def main() -> int:
    """Detaches, and supervises the job in the folder of the first argument. Returns 0 once it holds the lock."""
    folder = Path(sys.argv[1])
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(told, 1) else 1
    os.close(told)
    os.setsid()
    # A second fork, so that the supervisor is nobody's child whom the peer would have to wait for.
    if os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    lock = _take_lock(folder)
    if lock is not None:
        os.write(tell, b"\n")
        os.close(tell)
        _Supervisor(folder).run()
    os._exit(0)


def _take_lock(folder: Path) -> int | None:
    """The lock of the folder; None where another supervisor has it, the job was begun before, or the folder is gone."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            # The peer holds it for a moment when it looks.
            time.sleep(_PAUSE)
    else:
        return None
    try:
        moved = os.stat(folder / LOCK).st_ino != os.fstat(lock).st_ino
    except OSError:
        moved = True
    return None if moved or (folder / PROCESS).exists() or (folder / EXIT).exists() else lock


class _Supervisor:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        job = json.loads((folder / JOB).read_bytes())
        self._name: str = job["name"]
        self._argv: list[str] = job["argv"]
        self._environment: dict[str, str] = job["environment"]
        self._groups: list[str] = job["groups"]
        self._ready_seconds: float = job["ready_seconds"]
        self._rate: int = job["output_rate"]
        self._output = OutputFiles(folder, job["output_bytes"])
        self._first = bytearray()
        self._ready = False
        self._problem = ""

    def run(self) -> None:
        # Orphans of the job become children of this process, so that they are found without a cgroup too.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        write_file(self._folder / SUPERVISOR, {"pid": os.getpid(), "started": start_ticks(os.getpid())})
        try:
            child = self._start()
        except OSError as error:
            self._finish({"kind": "failed", "message": f"cannot start: {error.strerror}"})
            return
        status = self._follow(child)
        self._finish(self._exit(status))

    def _start(self) -> _Child:
        """Forks the child, writes who it is, and lets it run. Raises OSError."""
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        gate_read, gate_write = os.pipe()
        failed_read, failed_write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(gate_write)
            self._become_program(gate_read, failed_write, out_write, err_write)
        for descriptor in (out_write, err_write, gate_read, failed_write):
            os.close(descriptor)
        write_file(
            self._folder / PROCESS,
            {"pid": pid, "started": start_ticks(pid), "boot": boot_id(), "at": time.time()},
        )
        with contextlib.suppress(OSError):
            os.write(gate_write, b"\n")
        os.close(gate_write)
        with os.fdopen(failed_read, "rb") as file:
            self._problem = file.read(512).decode("utf-8", "replace")
        return _Child(pid, os.pidfd_open(pid), out_read, err_read)

    def _become_program(self, gate: int, failed: int, out: int, err: int) -> None:
        """In the child: joins the groups, waits until it is written down, and becomes the program."""
        try:
            os.setsid()
            for group in self._groups:
                with open(f"{group}/cgroup.procs", "w") as file:
                    file.write("0")
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                file.write("500")
            os.dup2(os.open(self._folder / "input.json", os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.umask(0o077)
            os.chdir(self._folder / "work")
            if os.read(gate, 1):
                os.execve(self._argv[0], self._argv, self._environment)
        except BaseException as error:
            os.write(failed, f"cannot run {self._argv[0]}: {getattr(error, 'strerror', None) or error}".encode()[:512])
        os._exit(127)

    def _follow(self, child: _Child) -> int:
        """Reads the output until the child has exited and everything that it started is gone; its wait status."""
        streams = {child.out: 1, child.err: 2}
        ready_until = time.monotonic() + self._ready_seconds
        status: int | None = None
        drained_until = 0.0
        while streams or status is None:
            watched = [*streams, *([child.pidfd] if status is None else [])]
            timeout = _REAP_SECONDS if self._ready else max(0.0, ready_until - time.monotonic())
            if status is not None:
                timeout = max(0.0, drained_until - time.monotonic())
            found = select.select(watched, [], [], timeout)[0]
            _reap(child.pid)
            for descriptor in [one for one in found if one in streams]:
                if not self._take(streams[descriptor], os.read(descriptor, _PIECE)):
                    os.close(descriptor)
                    del streams[descriptor]
            if child.pidfd in found and status is None:
                status = os.waitpid(child.pid, 0)[1]
                self._end_all()
                drained_until = time.monotonic() + _DRAIN_SECONDS
            if status is not None and not found and time.monotonic() >= drained_until:
                break
            if status is None and not self._ready and time.monotonic() >= ready_until:
                self._give_up(f"it was not ready within {self._ready_seconds:g} s")
        self._output.close()
        return status

    def _take(self, stream: int, data: bytes) -> bool:
        """Keeps what was read; whether the stream goes on."""
        if not data:
            return False
        if stream == 1 and not self._ready:
            self._first += data
            line, found, rest = bytes(self._first).partition(b"\n")
            if found:
                self._accept_ready(line)
                data = rest
            elif len(self._first) > _LONGEST_READY:
                self._give_up(f"its first line has more than {_LONGEST_READY} bytes")
                data = b""
            else:
                return True
        if data:
            self._output.write(stream, data)
            # The program waits at its pipe meanwhile: a flood costs neither the disk nor a core.
            time.sleep(len(data) / self._rate)
        return True

    def _accept_ready(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            if not isinstance(said, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError):
            self._give_up("its first line of output is not a JSON object")
            return
        if isinstance(said.get("error"), str):
            self._give_up(said["error"])
        elif said.get("ready") is not True:
            self._give_up('its first line of output has neither "ready": true nor "error"')
        else:
            self._ready = True
            write_file(self._folder / READY, said)

    def _give_up(self, problem: str) -> None:
        self._problem = self._problem or problem[:512]
        self._ready = True
        kill_job(self._groups, self._name, os.getpid())

    def _end_all(self) -> None:
        """Kills what the program left behind. There is no last try: what cannot be killed still uses the machine."""
        pause = _PAUSE
        while not kill_job(self._groups, self._name, os.getpid()):
            _reap(None)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _exit(self, status: int) -> dict[str, Any]:
        kills = oom_kills(self._groups)
        if self._problem or not self._ready:
            message = self._problem or "it exited before it was ready"
            return {"kind": "failed", "message": message, "oom_kills": kills}
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            kind = "memory" if number == signal.SIGKILL and kills else "signal"
            return {"kind": kind, "signal": number, "oom_kills": kills}
        code = os.WEXITSTATUS(status)
        # A shell reports the signal that ended its last command so.
        kind = "memory" if code == 128 + signal.SIGKILL and kills else "code"
        return {"kind": kind, "code": code, "oom_kills": kills}

    def _finish(self, found: dict[str, Any]) -> None:
        # A full disk may have space again; without this file the job would be taken for lost.
        pause = _PAUSE
        while self._folder.exists():
            try:
                write_file(self._folder / EXIT, {**found, "at": time.time()})
                return
            except OSError:
                time.sleep(pause)
                pause = min(2 * pause, _REAP_SECONDS)


class _Child(NamedTuple):
    pid: int
    pidfd: int
    out: int
    err: int


class OutputFiles:
    """Keeps output in files named by the offset of their first byte; at most `most` bytes with the first file's."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._size = max(1, most // SEGMENTS)
        self._kept: list[int] = []
        self._offset = 0
        self._left = 0
        self._file = -1

    def write(self, stream: int, data: bytes) -> None:
        """Appends output of one stream. What cannot be written, because the disk is full, is left out."""
        while data:
            if self._left <= 0:
                self._next_file()
            part, data = data[: self._left], data[self._left :]
            with contextlib.suppress(OSError):
                os.write(self._file, bytes([stream]) + len(part).to_bytes(4, "big") + part)
            self._offset += len(part)
            self._left -= len(part)

    def close(self) -> None:
        """Closes the file that is being written."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _next_file(self) -> None:
        self.close()
        if len(self._kept) == SEGMENTS:
            with contextlib.suppress(OSError):
                os.unlink(self._folder / f"{OUTPUT}.{self._kept.pop(1):016d}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._folder / f"{OUTPUT}.{self._offset:016d}", flags, 0o600)
        self._kept.append(self._offset)
        self._left = self._size


def write_file(path: Path, content: dict[str, Any]) -> None:
    """Writes a small file whole or not at all, and waits for the disk. Raises OSError."""
    draft = path.with_name(f".{path.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(descriptor)
    os.replace(draft, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def start_ticks(pid: int) -> int | None:
    """The start of a process in clock ticks after boot; None when it is gone. A zombie counts as gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def _stat(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def boot_id() -> str:
    """What identifies this run of the machine: after a reboot all process ids mean others."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def kill_job(groups: list[str], name: str, supervisor: int | None) -> bool:
    """Kills all processes of a job once; whether there were none. Call it until it returns true.

    Those are the members of its cgroups, the descendants of its supervisor and all that have its mark. A job that may
    change its user or group escapes two of these ways, and a cgroup never.
    """
    empty = True
    for group in groups:
        empty &= not _kill_group(group)
    # A program may have moved what it started to other groups, as `systemd-run --scope` does.
    found = set(_marked(f"{JOB_MARK}={name}".encode()))
    if supervisor is not None:
        found |= set(_descendants(supervisor))
    found.discard(os.getpid())
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return empty and not found


def _kill_group(group: str) -> bool:
    """Kills the members of a group and of the groups in it; whether there were any."""
    found = False
    for folder, _, files in os.walk(group):
        members = _members(folder)
        if not members:
            continue
        found = True
        with contextlib.suppress(OSError):
            if "cgroup.kill" in files:
                _write(f"{folder}/cgroup.kill", "1")
                continue
            # Frozen processes cannot fork faster than they are killed.
            if "freezer.state" in files:
                _write(f"{folder}/freezer.state", "FROZEN")
            for pid in _members(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if "freezer.state" in files:
            with contextlib.suppress(OSError):
                _write(f"{folder}/freezer.state", "THAWED")
    return found


def _members(folder: str) -> list[int]:
    try:
        with open(f"{folder}/cgroup.procs") as file:
            # A process of another pid namespace is shown as 0, which would be our own group.
            return [int(line) for line in file if int(line) > 0]
    except OSError:
        return []


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _descendants(ancestor: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for pid in _processes():
        fields = _stat(pid)
        if fields and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(pid)
    waiting = [ancestor]
    while waiting:
        below = children.pop(waiting.pop(), [])
        yield from below
        waiting += below


def _marked(mark: bytes) -> Iterator[int]:
    for pid in _processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read().split(b"\0"):
                yield pid


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _reap(spared: int | None) -> None:
    """Takes note of orphans that have exited, but not of the child `spared`, whose status is still wanted."""
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid == spared:
                return
            os.waitpid(found.si_pid, 0)


def oom_kills(groups: list[str]) -> int:
    """How many processes of these groups the kernel has killed for want of memory."""
    found = 0
    for group in groups:
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError), open(f"{group}/{name}") as file:
                counts = dict(line.split() for line in file)
                found = max(found, int(counts.get("oom_kill", 0)))
    return found


if __name__ == "__main__":
    sys.exit(main())
