"""The process that runs one program of the owner's for one job, and outlives the peer.

The peer starts it with the job's folder as its argument. It detaches itself and then:

1. takes the lock of the folder, so that no job has two supervisors;
2. makes a child that joins the job's cgroups and waits; writes the child's number and start; lets it run the program;
3. reads `ready` from the first line of standard output, and keeps what follows in files of bounded size;
4. when the program has exited, kills everything that it started, and writes how it exited.

What happened is in files, each written whole and synced before the next step: so it is known after a crash of the peer,
of this process, or of the machine. It imports nothing but the standard library and two modules beside it, so that it
starts fast and stays small (about 10 MiB).
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
from pathlib import Path
from typing import Any, Final, NamedTuple

from .job_files import EXIT, JOB, LOCK, PROCESS, READY, SUPERVISOR, OutputFiles, write_file
from .processes import boot_id, kill_job, oom_kills, start_ticks

__all__ = ["main"]

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
            if found and len(line) <= _LONGEST_READY:
                self._accept_ready(line)
                data = rest
            elif len(line) > _LONGEST_READY:
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


def _reap(spared: int | None) -> None:
    """Takes note of orphans that have exited, but not of the child `spared`, whose status is still wanted."""
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid == spared:
                return
            os.waitpid(found.si_pid, 0)
