"""The section `executors` of peer.yaml: its values, and each kind of invalid value."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dms_peer.config.effective import config_values
from dms_peer.config.sources import ConfigSources
from dms_peer.errors import DocumentError
from dms_peer.executors.executor import ExecutorError
from dms_peer.executors.loading import open_executors
from dms_peer.executors.settings import CommandSettings, DockerSettings, EntryPointExecutorSettings
from dms_resources.units import GIB, MIB


def load(home: Path, text: str) -> ConfigSources:
    (home / "peer.yaml").write_text(text)
    return ConfigSources(home, {})


def test_without_the_section_there_are_no_executors(tmp_path: Path) -> None:
    assert ConfigSources(tmp_path, {}).load().config.executors == {}


def test_every_field_is_read_and_shown(tmp_path: Path) -> None:
    program = tmp_path / "run"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    loaded = load(
        tmp_path,
        """
executors:
  docker: {images: ["docker.io/library/*", "ghcr.io/a/b@sha256:%s"], networks: [none, full], read_only: true}
  podman:
    kind: docker
    socket: /run/podman/podman.sock
    capabilities: packages
    scratch: 1GiB
    processes: 99
    publish: 192.0.2.7
    pull_seconds: 10m
    image_bytes: 2GiB
    output_bytes: 1MiB
    output_rate: 64KiB
  command:
    {command: [./run, -x], ready_seconds: 5m, environment: {A: b c}, limit: false, processes: 5, cgroup: /sys/fs/x}
  mine: {kind: python, name: theirs, options: {Region: eu}}
"""
        % ("0" * 64),
    ).load()
    assert loaded.config.executors == {
        "docker": DockerSettings(
            images=("docker.io/library/*", f"ghcr.io/a/b@sha256:{'0' * 64}"), networks=("none", "full"), read_only=True
        ),
        "podman": DockerSettings(
            socket="/run/podman/podman.sock",
            capabilities="packages",
            scratch=GIB,
            processes=99,
            publish="192.0.2.7",
            pull_seconds=600.0,
            image_bytes=2 * GIB,
            output_bytes=MIB,
            output_rate=64 * 1024,
        ),
        "command": CommandSettings(
            command=(str(program), "-x"),
            ready_seconds=300.0,
            environment=("A=b c",),
            limit=False,
            processes=5,
            cgroup="/sys/fs/x",
        ),
        "mine": EntryPointExecutorSettings(name="theirs", options={"Region": "eu"}),
    }
    shown = config_values(loaded.config)
    assert shown["executors.podman.kind"] == "docker"
    assert (shown["executors.podman.scratch"], shown["executors.podman.output_rate"]) == ("1GiB", "64KiB")
    assert shown["executors.command.command"] == [str(program), "-x"]
    assert "executors.mine.options.Region" in shown


@pytest.mark.parametrize(
    ("section", "field", "problem"),
    [
        ("[docker]", "executors", "must be a mapping"),
        ("{Docker: {}}", "executors.Docker", "its name"),
        ("{mine: {}}", "executors.mine", "kind is missing"),
        ("{mine: {kind: podman}}", "executors.mine.kind", "'podman' is not one of"),
        ("{docker: {command: [ls]}}", "executors.docker.command", "unknown field"),
        ("{docker: {privileged: true}}", "executors.docker.privileged", "unknown field"),
        ("{docker: {socket: docker.sock}}", "executors.docker.socket", "not an absolute path"),
        ("{docker: {images: [python]}}", "executors.docker.images[0]", "not a pattern of images"),
        ("{docker: {images: ['*']}}", "executors.docker.images[0]", "not a pattern of images"),
        ("{docker: {images: ['a b/c']}}", "executors.docker.images[0]", "not a pattern of images"),
        ("{docker: {networks: [host]}}", "executors.docker.networks[0]", "'host' is not one of"),
        ("{docker: {capabilities: SYS_ADMIN}}", "executors.docker.capabilities", "'SYS_ADMIN' is not one of"),
        ("{docker: {processes: 0}}", "executors.docker.processes", "not a whole number"),
        ("{docker: {publish: example.com}}", "executors.docker.publish", "not an IP address"),
        ("{docker: {output_bytes: 1KiB}}", "executors.docker.output_bytes", "not between"),
        ("{docker: {scratch: 5}}", "executors.docker.scratch", "has no unit"),
        ("{command: {}}", "executors.command", "command is missing"),
        ("{command: {command: []}}", "executors.command.command", "is empty"),
        ("{command: {command: [./gone]}}", "executors.command.command[0]", "no such executable"),
        ("{command: {command: [ls], environment: {A-B: c}}}", "executors.command.environment", "not a name"),
        ("{command: {command: [ls], environment: [A=b]}}", "executors.command.environment", "must be a mapping"),
        ("{mine: {kind: python}}", "executors.mine", "name is missing"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, section: str, field: str, problem: str) -> None:
    sources = load(tmp_path, f"executors: {section}\n")
    with pytest.raises(DocumentError) as caught:
        sources.load()
    assert (caught.value.code, caught.value.field, caught.value.line) == ("bad_config", field, 1)
    assert problem in caught.value.message
    assert [error.field for error in sources.problems()] == [field]


def test_there_is_a_bound_on_executors(tmp_path: Path) -> None:
    many = ", ".join(f"e{number}: {{kind: docker}}" for number in range(17))
    with pytest.raises(DocumentError, match="17 entries"):
        load(tmp_path, f"executors: {{{many}}}\n").load()


PACKAGE = """
from contextlib import asynccontextmanager

class Theirs:
    def __init__(self, name, folder, options):
        self.name, self.folder, self.options = name, folder, options

@asynccontextmanager
async def open_theirs(name, folder, options):
    if "broken" in options:
        raise RuntimeError("no such cluster")
    yield Theirs(name, folder, options)
"""


async def test_executors_of_others_are_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(PACKAGE)
    information = tmp_path / "theirs-1.dist-info"
    os.mkdir(information)
    (information / "entry_points.txt").write_text("[dms_peer.executors]\ntheirs = theirs:open_theirs\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    settings = {
        "batch": EntryPointExecutorSettings(name="theirs", options={"region": "eu"}),
        "command": CommandSettings(command=("/bin/true",)),
    }
    async with open_executors(settings, tmp_path / "jobs") as opened:
        assert [(name, one.name) for name, one in opened.items()] == [("batch", "batch"), ("command", "command")]
        assert vars(opened["batch"])["folder"] == tmp_path / "jobs" / "batch"
    for bad, words in (
        (EntryPointExecutorSettings(name="gone"), "unknown entry point 'gone'"),
        (EntryPointExecutorSettings(name="theirs", options={"broken": "1"}), "no such cluster"),
    ):
        with pytest.raises(ExecutorError, match=words) as caught:
            async with open_executors({"batch": bad}, tmp_path):
                pass
        assert caught.value.code == "executor_unusable"
