from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from dms_peer.cli.job_output import JSONJobs, ShownJobs, describe_exit, exit_code
from dms_peer.cli.tables.jobs import show_jobs
from dms_peer.requesting.reports import HomeJob, HomeJobs
from dms_protocols.messages.job import JobConsumption, JobExit, JobOutput, JobPort, JobStatus


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No colors, and comments."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("dms_peer.cli.output._quiet", False)


def status(**fields: Any) -> JobStatus:
    values: dict[str, Any] = {
        "lease_id": "0123456789abcdef", "fence": 1, "digest": b"d" * 32, "executor": "docker", "state": "running",
        "created": 1.0, "since": time.time() - 90,
    }  # fmt: skip
    return JobStatus(**values | fields)


def pieces(*data: bytes, stream: Any = "stdout") -> list[JobOutput]:
    offset, found = 0, []
    for one in data:
        found.append(JobOutput(offset=offset, data=one, stream=stream))
        offset += len(one)
    return found


@pytest.mark.parametrize(
    ("job_exit", "code"),
    [
        (JobExit(kind="code", code=0), 0),
        (JobExit(kind="code", code=3), 3),
        (JobExit(kind="code", code=256 + 2), 2),
        (JobExit(kind="signal", signal=11), 139),
        (JobExit(kind="memory", signal=9, oom_kills=1), 137),
        (JobExit(kind="stopped", signal=15), 143),
        (JobExit(kind="stopped"), 1),
        *((JobExit(kind=kind), 1) for kind in ("evicted", "expired", "lost", "failed")),
    ],
)
def test_the_exit_code_is_that_of_a_shell(job_exit: JobExit, code: int) -> None:
    assert exit_code(job_exit) == code
    assert describe_exit(job_exit)


def test_lines_are_put_together_for_each_job_and_stream(capsys: Any) -> None:
    shown = ShownJobs(["web", "database"])
    for piece in pieces(b"one\ntw", b"o\n", b"thr"):
        shown.output("web", piece)
    shown.output("database", JobOutput(offset=0, data=b"x\r\n"))
    shown.output("web", JobOutput(offset=11, data=b"bad\n", stream="stderr"))
    shown.finish("web")
    out, err = capsys.readouterr()
    assert out == "web      | one\nweb      | two\ndatabase | x\nweb      | thr\n"
    assert err == "web      | bad\n"


def test_one_job_alone_needs_no_name(capsys: Any) -> None:
    shown = ShownJobs(["node"])
    shown.output("node", JobOutput(offset=0, data="grün\n".encode()))
    assert capsys.readouterr().out == "grün\n"


def test_output_cannot_control_the_terminal(capsys: Any) -> None:
    shown = ShownJobs(["a", "b"])
    shown.output("a", JobOutput(offset=0, data=b"\x1b[2J\x1b]0;title\x07\xff\xfe ok\n"))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert out.endswith("ok\n")


def test_names_have_colors_where_the_terminal_has(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = ShownJobs(["a", "b"])
    for name in "ab":
        shown.output(name, JobOutput(offset=0, data=b"x\n"))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("\x1b[36ma")
    assert second.startswith("\x1b[33mb")


def test_a_line_without_an_end_does_not_grow(capsys: Any) -> None:
    shown = ShownJobs(["a"])
    for _ in range(64):
        shown.output("a", JobOutput(offset=0, data=b"x" * 65536))
    kept = sum(len(one) for one in shown._unfinished.values())
    assert kept <= 16 * 1024
    shown.finish("a")
    assert capsys.readouterr().out.count("x") == 64 * 65536


def test_dropped_output_and_each_state_are_told_once(capsys: Any) -> None:
    shown = ShownJobs(["a"])
    shown.output("a", JobOutput(offset=2048, data=b"x\n", dropped=2048))
    shown.state("a", status(state="pulling", reason="layer 1 of 3"))
    for _ in range(2):
        shown.state("a", status(state="exited", exit=JobExit(kind="code", code=1)))
    assert capsys.readouterr().err.splitlines() == [
        "a: 2 KiB of output are no longer kept",
        "a is pulling: layer 1 of 3",
        "a exited with code 1",
    ]


def test_json_has_every_byte(capsys: Any) -> None:
    shown = JSONJobs()
    shown.output("a", JobOutput(offset=3, data=b"\0\xff", stream="stderr"))
    shown.state("a", status(state="exited", exit=JobExit(kind="code", code=1)))
    output, state = map(json.loads, capsys.readouterr().out.splitlines())
    assert (output["event"], output["offset"], output["stream"]) == ("output", 3, "stderr")
    assert base64.b64decode(output["data"]) == b"\0\xff"
    assert (
        state["job"]["exit"] == {"kind": "code", "code": 1, "oom_kills": 0, "message": ""}
        or state["job"]["exit"]["code"] == 1
    )


def test_jobs_are_a_table(capsys: Any) -> None:
    job = status(
        ports=(JobPort(private=80, public=16400), JobPort(private=81)),
        usage=JobConsumption(cpu_seconds=1.25, memory=2**20),
    )
    one = HomeJob(
        ensemble_id="nightly", node_id="web", peer_id="12D3KooWKT4R3MXsXok4hq", lease_id=job.lease_id, job=job
    )
    show_jobs(HomeJobs(jobs=(one,), unanswered=()))
    out = capsys.readouterr().out
    for word in ("nightly", "web", "01234567", "12D3KooWKT4R3MXs", "running", "1 min 30 s", "16400->80", "1 MiB"):
        assert word in out, word
