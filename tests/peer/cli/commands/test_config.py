"""dms-peer config: what it shows, what it refuses, and the example that it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dms_peer.__main__ import run_command

pytestmark = pytest.mark.usefixtures("no_variables")


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DMS_CONFIG", raising=False)


def test_init_writes_a_valid_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(tmp_path / "home")
    assert run_command(["config", "init", "--home", home]) == 0
    assert run_command(["config", "check", "--home", home]) == 0
    assert f"{home}/peer.yaml is valid" in capsys.readouterr().out
    written = (tmp_path / "home" / "peer.yaml").read_text()
    assert run_command(["config", "init", "--home", home]) == 1
    assert f"{home}/peer.yaml exists" in capsys.readouterr().err
    assert (tmp_path / "home" / "peer.yaml").read_text() == written


def test_show_names_the_source_of_each_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peer.yaml").write_text("guard: enforce\naccess: {shares: {peer: {bids: 7}}}\n")
    monkeypatch.setenv("DMS_PEER_LOG_LEVEL", "info")
    assert run_command(["config", "show", "--home", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["file"] == f"{tmp_path}/peer.yaml"
    settings = {one["path"]: (one["value"], one["source"]) for one in shown["settings"]}
    assert settings["guard"] == ("enforce", f"{tmp_path}/peer.yaml:1")
    assert settings["access.shares.peer.bids"] == (7, f"{tmp_path}/peer.yaml:2")
    assert settings["logs.level"] == ("info", "DMS_PEER_LOG_LEVEL")
    assert settings["discovery.mdns"] == (True, "default")
    assert run_command(["config", "show", "--home", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["guard"].split()[1:] == ["enforce", f"{tmp_path}/peer.yaml:1"]
    assert "limits.host.max_connections" not in lines


def test_check_reports_every_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "peer.yaml"
    file.write_text("guard: maybe\nlogs: {level: loud}\n")
    assert run_command(["config", "check", str(file)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(" column")[0] for line in errors) == [
        f"dms-peer: {file}, line 1,",
        f"dms-peer: {file}, line 2,",
    ]


@pytest.mark.parametrize(
    ("text", "field", "line"),
    [
        ("\nlisten: [nonsense]", "listen", 2),
        ("discovery:\n  bootstrap: [/ip4/1.2.3.4/tcp/1]", "discovery.bootstrap", 2),
        ("network: {deny_addresses: [nonsense]}", "network", 1),
    ],
)
def test_check_reads_addresses_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, field: str, line: int
) -> None:
    (tmp_path / "peer.yaml").write_text(text)
    assert run_command(["config", "check", "--home", str(tmp_path), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["field"], error["line"]) == ("bad_config", field, line)


@pytest.mark.parametrize("command", ["init", "check"])
def test_a_file_name_that_is_not_utf_8_is_told_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"peer\xff.yaml")
    if command == "check":
        Path(name).touch()
    assert run_command(["config", command, name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == "peer?.yaml"


@pytest.mark.parametrize("name", ["", "/", "."])
def test_a_folder_is_no_place_for_the_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", "init", name, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "os_error"
