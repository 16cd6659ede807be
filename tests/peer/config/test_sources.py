"""The configuration file, the environment and options: which overrides which, errors, and the source of each value."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command

from dms_peer.cli.app import command_app
from dms_peer.config.effective import config_values, needs_restart
from dms_peer.config.example import EXAMPLE
from dms_peer.config.settings import SETTINGS, PeerConfig
from dms_peer.config.sources import ConfigSources
from dms_peer.errors import DocumentError

# Lines with settings have no space after the `#`, or two.
UNCOMMENTED = re.sub(r"(?m)^#(?! \S)", "", EXAMPLE)


def sources(home: Path, text: str | None = None, env: dict[str, str] | None = None, **options: Any) -> ConfigSources:
    if text is not None:
        (home / "peer.yaml").write_text(text)
    return ConfigSources(home, env or {}, None, {name.replace("__", "."): value for name, value in options.items()})


def test_without_any_source_all_is_default(tmp_path: Path) -> None:
    loaded = sources(tmp_path).load()
    assert (loaded.config, loaded.file, dict(loaded.origins)) == (PeerConfig(), None, {})


def test_options_override_the_environment_and_that_the_file(tmp_path: Path) -> None:
    text = "guard: off\nlogs:\n  level: info\n  json: true\nnetwork: {relay: true}\n"
    env = {"DMS_PEER_GUARD": "enforce", "DMS_PEER_LOG_LEVEL": "error", "DMS_PEER_BOOTSTRAP": "/a /b,/c"}
    loaded = sources(tmp_path, text, env, logs__level="debug", network__relay=False, listen=["/x", "/y"]).load()
    config = loaded.config
    assert (config.guard, config.logs.level, config.logs.json) == ("enforce", "debug", True)
    assert (config.network.relay, config.listen) == (False, ("/x", "/y"))
    assert config.discovery.bootstrap == ("/a", "/b", "/c")
    short = {path: position.short for path, position in loaded.origins.items()}
    assert short == {
        "guard": "DMS_PEER_GUARD",
        "logs.level": "--log-level",
        "logs.json": f"{tmp_path}/peer.yaml:4",
        "network.relay": "--no-relay",
        "listen": "--listen",
        "discovery.bootstrap": "DMS_PEER_BOOTSTRAP",
    }


def test_the_file_is_the_named_one_or_that_of_the_home(tmp_path: Path) -> None:
    for name, guard in (("peer", "off"), ("env", "warn"), ("option", "enforce")):
        (tmp_path / f"{name}.yaml").write_text(f"guard: {guard}")
    env = {"DMS_CONFIG": str(tmp_path / "env.yaml")}
    assert ConfigSources(tmp_path, {}).load().config.guard == "off"
    assert ConfigSources(tmp_path, env).load().config.guard == "warn"
    assert ConfigSources(tmp_path, env, tmp_path / "option.yaml").load().config.guard == "enforce"
    with pytest.raises(DocumentError, match=r"cannot read .*none\.yaml"):
        ConfigSources(tmp_path, {}, tmp_path / "none.yaml").load()


def test_a_section_may_stand_in_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "terms.yaml").write_text("\nprices: {currency: EUR, core: 0.5}\n")
    (other / "access.yaml").write_text("others: token\n")
    text = "terms: other/terms.yaml\nlimits:\n  service: {depth: 9}\n"
    monkeypatch.chdir(other)
    # A path in the file is relative to the file; a path in an option, to the working directory.
    loaded = sources(tmp_path, text, access="access.yaml").load()
    values = config_values(loaded.config)
    assert (values["terms.prices.core"], values["access.others"], values["limits.service.depth"]) == ("0.5", "token", 9)
    assert loaded.origins["terms.prices.core"].short == f"{tmp_path}/other/terms.yaml:2"
    assert loaded.origins["access.others"].short == "access.yaml:1"
    assert loaded.origins["limits.service.depth"].short == f"{tmp_path}/peer.yaml:3"


def test_a_machine_file_is_found_beside_the_configuration(tmp_path: Path) -> None:
    assert sources(tmp_path, "machine: m.json").load().config.machine == f"{tmp_path}/m.json"
    assert sources(tmp_path, "machine: measured").load().config.machine == "measured"
    assert sources(tmp_path, "machine: x", {"DMS_PEER_MACHINE": "m.json"}).load().config.machine == "m.json"


def test_the_docs_name_every_field_and_option() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    for setting in SETTINGS:
        section, _, name = setting.path.rpartition(".")
        assert f"`{setting.option}`" in docs
        assert f"`{setting.path}`" in docs or (f"`{section}." in docs and f"`.{name}`" in docs), setting.path
    for name in PeerConfig.__struct_fields__:
        assert f"`{name}" in docs


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_nothing_but_document_errors_comes_of_any_bytes(data: st.DataObject) -> None:
    raw = bytearray(UNCOMMENTED.encode())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "peer.yaml"
        path.write_bytes(raw)
        found = ConfigSources(Path(folder), {}).problems()
        assert all(error.code.startswith("bad_") for error in found)
        if not found:
            config_values(ConfigSources(Path(folder), {}).load().config)


@pytest.mark.parametrize(
    ("text", "env", "code", "message"),
    [
        ("gard: off", {}, "bad_config", "{}/peer.yaml, line 1, column 1: gard: unknown field"),
        ("logs:\n  level: loud", {}, "bad_config", "{}/peer.yaml, line 2, column 10: logs.level: 'loud' is not one of"),
        ("", {"DMS_PEER_MDNS": "maybe"}, "bad_config", "DMS_PEER_MDNS: discovery.mdns: 'maybe' is not true or false"),
        ("", {"DMS_PEER_METRICS": "x:99999"}, "bad_config", "DMS_PEER_METRICS: metrics.address: invalid port"),
        ("terms: {price: 1}", {}, "bad_terms", "{}/peer.yaml, line 1, column 9: terms.price: unknown field"),
        ("access: gone.yaml", {}, "bad_access", "cannot read {}/gone.yaml: No such file"),
        ("limits: .", {}, "bad_limits", "cannot read {}: "),
        ("network: yes", {"DMS_PEER_RELAY": "true"}, "bad_config", "{}/peer.yaml, line 1, column 10: network: must be"),
        (
            "allocations: {keep_alive: 0}",
            {},
            "bad_config",
            "{}/peer.yaml, line 1, column 27: allocations.keep",
        ),
        ("- a", {}, "bad_config", "{}/peer.yaml, line 1, column 1: must be a mapping"),
        ("guard: [", {}, "bad_config", "{}/peer.yaml, line 1, column"),
    ],
)
def test_errors_name_their_source(tmp_path: Path, text: str, env: dict[str, str], code: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        sources(tmp_path, text, env).load()
    assert caught.value.code == code
    assert caught.value.message.startswith(message.format(tmp_path))


def test_all_sections_with_errors_are_reported_at_once(tmp_path: Path) -> None:
    text = "guard: maybe\nlogs: {level: loud}\nterms: {price: 1}\nlisten: [/ip4/0.0.0.0/tcp/1]\n"
    assert [error.line for error in sources(tmp_path, text).problems()] == [1, 2, 3]


OUTPUT_OPTIONS = {"--home", "--config", "--json", "--debug", "--help", "-q", "-v", "--color"}


def test_every_option_of_run_has_a_setting_and_a_variable() -> None:
    group: Any = get_command(command_app(["run"]))
    options = {parameter.opts[0] for parameter in group.commands["run"].params}
    assert {one.option for one in SETTINGS} == options - OUTPUT_OPTIONS
    assert len({one.variable for one in SETTINGS}) == len(SETTINGS)


def test_the_example_changes_nothing_until_it_is_uncommented(tmp_path: Path) -> None:
    assert sources(tmp_path, EXAMPLE).load().config == PeerConfig()
    config = sources(tmp_path, UNCOMMENTED).load().config
    assert set(re.findall(r"(?m)^([a-z_]+):", UNCOMMENTED)) == {*PeerConfig.__struct_fields__} - {"machine"}
    assert config.terms is not None
    assert (config.allocations.keep_alive, config.allocations.longest) == (900.0, None)
    assert config.limits.host.max_inbound_connections == 128


def test_values_are_shown_as_they_are_written() -> None:
    values = config_values(PeerConfig())
    assert {one.path for one in SETTINGS} - {"terms", "access", "limits"} <= values.keys()
    assert (values["guard"], values["metrics.address"], values["access.others"]) == ("enforce", None, "anyone")
    assert values["limits.service.frame_bytes"] == "64KiB"
    assert values["access.shares.peer.longest_ttl"] is None


def test_what_a_running_peer_cannot_take_over_is_known(tmp_path: Path) -> None:
    before = sources(tmp_path, "guard: off\nterms: {privileged_docker: true}").load().config
    after = (
        sources(
            tmp_path,
            "guard: warn\nterms: {valid_seconds: 9s, policies: [{url: 'http://127.0.0.1/'}]}\naccess: {others: token}\n"
            "limits: {service: {depth: 9}, host: {max_connections: 500}}",
        )
        .load()
        .config
    )
    assert needs_restart(before, after) == ("guard", "limits.host.max_connections", "terms.policies")
    assert needs_restart(before, before) == ()
