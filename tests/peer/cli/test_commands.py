"""The command line without a peer: its output, its exit codes, and its errors for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from dms_host.keys.identity import load_identity, load_or_create_identity
from dms_peer.__main__ import run_command
from dms_peer.cli.app import command_app
from dms_peer.owner.start_marker import StartMark
from dms_resources.ledger.storage import SQLiteStorage

GIB = 2**30
MACHINE = {
    "cpu": {"cores": 8, "model": "Example 8"},
    "ram": {"size": "32GiB"},
    "disk": {"size": "500GiB"},
    "gpus": [
        {"uuid": "GPU-a", "vendor": "NVIDIA", "model": "Example 24", "vram": "24GiB"},
        {"uuid": "GPU-b", "vendor": "NVIDIA", "model": "Example 10", "vram": "10GiB"},
    ],
}
COMMANDS = (
    "audit", "hardware", "onboard", "offboard", "run", "status", "history", "peers", "discover", "reserve",
    "deploy", "run-on", "deployments", "logs", "stop", "forward",
    "free", "bid", "commit", "allocate", "renew", "release", "leases", "ping", "usage", "evict", "drain",
)  # fmt: skip
ABSENT = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"


@pytest.fixture
def machine_file(tmp_path: Path) -> str:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(MACHINE))
    return str(path)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The effects of --color and -q are undone after each test."""
    monkeypatch.setattr("dms_peer.cli.output._quiet", False)
    monkeypatch.setattr("dms_peer.telemetry.logs._verbosity", None)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "home")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that has to succeed and returns what it prints, as JSON if requested."""

    def run(*arguments: str) -> Any:
        code = run_command(arguments)
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out) if "--json" in arguments else out

    return run


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that has to fail, with and without --json. Returns exit code, error object and line."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = run_command(arguments)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("dms-peer: ")
        assert err.count("\n") == 1, "one line says what is wrong"
        assert "Traceback" not in err
        assert run_command([*arguments, "--json"]) == code
        error = json.loads(capsys.readouterr().out)["error"]
        assert {"code", "message"} <= error.keys()
        return code, error, err

    return run


OFFER = ("--cpu", "2", "--ram", "4GiB", "--disk", "10GiB")


def test_hardware_of_a_machine_file_in_the_dms_units(cli: Any, machine_file: str) -> None:
    machine = cli("hardware", "--machine", machine_file, "--json")
    assert machine["cpu"]["cores"] == 8
    assert machine["ram"]["size"] == 32 * GIB
    assert [gpu["vram"] for gpu in machine["gpus"]] == [24 * GIB, 10 * GIB]
    assert machine["simulated"] is True
    assert "(simulated)" in cli("hardware", "--machine", machine_file)


def test_hardware_is_measured_when_no_file_is_given(cli: Any) -> None:
    machine = cli("hardware", "--json")
    assert machine["cpu"]["cores"] > 0
    assert machine["ram"]["size"] > 0
    assert machine["simulated"] is False


def test_onboarding_is_kept_without_a_peer(cli: Any, home: str, machine_file: str) -> None:
    answer = cli("onboard", "--home", home, "--machine", machine_file, *OFFER, "--gpu", "0:8GiB", "--json")
    assert answer["onboarded"]["cpu"]["cores"] == 2
    assert answer["onboarded"]["ram"]["size"] == 4 * GIB
    assert [(gpu["uuid"], gpu["vram"]) for gpu in answer["onboarded"]["gpus"]] == [("GPU-a", 8 * GIB)]
    # The machine is remembered: --machine is not given here.
    status = cli("status", "--home", home, "--json")
    assert status["onboarded"] == answer["onboarded"]
    assert status["simulated"] is True
    assert status["running"] is False
    assert status["peer_id"] == load_identity(Path(home) / "key").peer_id
    text = cli("status", "--home", home)
    assert "simulated machine" in text
    assert "dms-peer run" in text


def test_a_warning_of_a_command_cannot_steer_the_terminal(tmp_path: Path) -> None:
    home = tmp_path / "\x1b[31mhome"
    home.mkdir()
    (home / "leases.json").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "dms_peer", "release", "abc", "--home", str(home)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    warning, error = done.stderr.splitlines()
    assert "leases.json" in warning
    assert all(line.startswith("dms-peer: ") and line.isprintable() for line in (warning, error))


def test_measured_goes_back_to_the_hardware(cli: Any, home: str, machine_file: str) -> None:
    cli("onboard", "--home", home, "--machine", machine_file, "--cpu", "1", "--ram", "1MiB", "--disk", "1MiB")
    cli("onboard", "--home", home, "--machine", "measured", "--cpu", "1", "--ram", "1MiB", "--disk", "1MiB")
    assert cli("status", "--home", home, "--json")["simulated"] is False


def test_a_machine_is_not_remembered_when_onboarding_fails(
    cli: Any, failing: Any, home: str, machine_file: str
) -> None:
    failing("onboard", "--home", home, "--machine", machine_file, "--cpu", "9", "--ram", "1GiB", "--disk", "1GiB")
    assert cli("status", "--home", home, "--json")["simulated"] is False


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (["all"], [("GPU-a", 24), ("GPU-b", 10)]),
        (["none"], []),
        ([], []),
        (["1"], [("GPU-b", 10)]),
        (["GPU-b:4GiB", "0"], [("GPU-b", 4), ("GPU-a", 24)]),
    ],
)
def test_gpus_to_offer(cli: Any, home: str, machine_file: str, choice: list[str], expected: list[Any]) -> None:
    options = [part for text in choice for part in ("--gpu", text)]
    answer = cli("onboard", "--home", home, "--machine", machine_file, *OFFER, *options, "--json")
    assert [(gpu["uuid"], gpu["vram"] // GIB) for gpu in answer["onboarded"]["gpus"]] == expected


def test_offboard_and_history(cli: Any, home: str, machine_file: str) -> None:
    cli("onboard", "--home", home, "--machine", machine_file, *OFFER)
    assert cli("offboard", "--home", home, "--drain", "--json")["onboarded"] is None
    entries = cli("history", "--home", home, "--json")["entries"]
    assert [entry["action"] for entry in entries] == ["offboard", "drain", "onboard"]
    assert cli("history", "--home", home, "--limit", "1", "--json")["entries"] == entries[:1]


def test_plain_tables_in_a_pipe(cli: Any, home: str, machine_file: str) -> None:
    text = cli("onboard", "--home", home, "--machine", machine_file, *OFFER, "--gpu", "all")
    assert text.isascii()
    assert "GPU 0 Example 24" in text


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["status", "--bogus"], "usage", "--bogus"),
        (["nonsense"], "usage", "nonsense"),
        (["onboard", "--cpu", "1"], "usage", "--ram"),
        (["onboard", "--cpu", "1", "--ram", "2 parsecs", "--disk", "1GiB"], "usage", "2 parsecs"),
        (["onboard", "--cpu", "-1", "--ram", "1GiB", "--disk", "1GiB"], "usage", "--cpu"),
        (["onboard", "--cpu", "0.0001", "--ram", "1GiB", "--disk", "1GiB"], "usage", "0.001"),
        (["onboard", "--cpu", "1", "--ram", "99999PiB", "--disk", "1GiB"], "usage", "larger than any machine"),
        (["onboard", "--cpu", "1", "--ram", "8", "--disk", "1GiB"], "usage", "write 8GiB"),
        (["onboard", "--cpu", "1", "--ram", "1GiB", "--disk", "10"], "usage", "write 10GiB"),
        (["onboard", "--cpu", "1", "--ram", "1GiB", "--disk", "1GiB", "--gpu", "0:8"], "usage", "write 8GiB"),
        (["bid", ABSENT, "--cpu", "1", "--ram", "8", "--disk", "1GiB"], "usage", "write 8GiB"),
        (["discover", "--gpu", "8589934592"], "usage", "write 8589934592B"),
        (["commit", ABSENT, "bid.cbor", "--ttl", "0"], "usage", "--ttl"),
        (["commit", ABSENT, "bid.cbor", "--ttl", "soon"], "usage", "soon"),
        (["onboard", *OFFER, "--gpu", "0:"], "usage", "0:8GiB"),
        (["onboard", *OFFER, "--gpu", "none", "--gpu", "0"], "usage", "none"),
        (["onboard", *OFFER, "--ports", "9-1"], "usage", "20000-20999"),
        (["bid", ABSENT, "--cpu", "1", "--ram", "2 parsecs", "--disk", "1GiB"], "usage", "2 parsecs"),
        (["free", "not-a-multiaddr"], "bad_address", "/ip4/"),
        (["free", "/ip4/127.0.0.1/tcp/4001"], "no_peer_id", "/p2p/"),
        (["run", "--listen", "nowhere"], "bad_address", "/ip4/"),
    ],
)
def test_a_command_line_that_makes_no_sense(
    failing: Any, home: str, arguments: list[str], code: str, fragment: str
) -> None:
    options = ["--home", home] if arguments[0] != "nonsense" else []
    exit_code, error, line = failing(*arguments, *options)
    assert exit_code == 2
    assert error["code"] == code
    assert fragment in line


def test_onboarding_more_than_the_machine_names_everything(failing: Any, home: str, machine_file: str) -> None:
    exit_code, error, line = failing(
        "onboard", "--home", home, "--machine", machine_file, "--cpu", "9", "--ram", "33GiB", "--disk", "1GiB",
        "--gpu", "1:11GiB",
    )  # fmt: skip
    assert exit_code == 1
    assert error["code"] == "onboarding"
    assert len(error["problems"]) == 3
    assert "9 cores asked but the machine has 8" in line
    assert "dms-peer hardware" in line


def test_a_gpu_that_is_not_there(failing: Any, home: str, machine_file: str) -> None:
    exit_code, error, line = failing("onboard", "--home", home, "--machine", machine_file, *OFFER, "--gpu", "7")
    assert (exit_code, error["code"]) == (1, "onboarding")
    assert "0 (GPU-a)" in line


def test_a_peer_that_is_not_there(failing: Any, home: str) -> None:
    exit_code, error, line = failing("free", ABSENT, "--home", home)
    assert (exit_code, error["code"]) == (1, "refused")
    assert "check that the peer runs" in line


def test_a_home_in_use(failing: Any, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(home).mkdir()
    monkeypatch.setattr("dms_peer.home.home.PATIENCE", 0.1)
    with SQLiteStorage(Path(home) / "ledger.db", boot_id="test"):
        for command in (["run"], ["onboard", *OFFER], ["status"]):
            exit_code, error, line = failing(*command, "--home", home)
            assert (exit_code, error["code"]) == (1, "ledger_in_use")
            assert str(os.getpid()) in line


@pytest.mark.parametrize("command", [["run"], ["status"], ["free", ABSENT]])
def test_a_damaged_key_file(failing: Any, home: str, command: list[str]) -> None:
    Path(home).mkdir()
    key = Path(home) / "key"
    key.write_bytes(b"no key")
    key.chmod(0o600)
    exit_code, error, line = failing(*command, "--home", home)
    assert (exit_code, error["code"]) == (1, "key_damaged")
    assert "restore it from a backup" in line


def test_a_key_that_others_can_read(failing: Any, cli: Any, home: str) -> None:
    cli("onboard", "--home", home, *OFFER)
    (Path(home) / "key").chmod(0o644)
    exit_code, error, line = failing("status", "--home", home)
    assert (exit_code, error["code"]) == (1, "key_exposed")
    assert "chmod 600" in line


def test_a_damaged_ledger_is_left_as_it_is(failing: Any, home: str) -> None:
    Path(home).mkdir()
    ledger = Path(home) / "ledger.db"
    ledger.write_bytes(b"this is no database" * 1000)
    exit_code, error, _ = failing("status", "--home", home)
    assert (exit_code, error["code"]) == (1, "ledger_damaged")
    assert ledger.read_bytes() == b"this is no database" * 1000


READING = (["status"], ["history"], ["audit"], ["peers"])


@pytest.mark.parametrize("command", READING, ids=" ".join)
@pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
def test_commands_that_read_make_nothing_in_a_wrong_home(
    failing: Any, cli: Any, home: str, command: list[str], there: bool
) -> None:
    if there:
        Path(home).mkdir(mode=0o700)
    if command == ["peers"]:
        assert cli(*command, "--home", home, "--json")["peers"] == []
    else:
        exit_code, error, line = failing(*command, "--home", home)
        assert (exit_code, error["code"]) == (1, "no_peer")
        assert "choose another --home" in line
    assert not there or not list(Path(home).iterdir())
    assert Path(home).exists() == there


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_commands_that_read_make_no_ledger_for_a_requester(cli: Any, home: str, command: list[str]) -> None:
    Path(home).mkdir(mode=0o700)
    peer_id = load_or_create_identity(Path(home) / "key").peer_id
    answer = cli(*command, "--home", home, "--json")
    if command == ["status"]:
        assert (answer["peer_id"], answer["running"], answer["onboarded"]) == (peer_id, False, None)
    assert {path.name for path in Path(home).iterdir()} == {"key"}


@pytest.mark.parametrize("command", READING[:3], ids=" ".join)
def test_a_peer_that_starts_is_said_to_start_at_once(
    failing: Any, cli: Any, home: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("onboard", "--home", home, *OFFER)
    monkeypatch.setattr("dms_peer.owner.offline.open_manager", lambda *_: pytest.fail("the ledger was opened"))
    monkeypatch.setattr("dms_resources.machine.hardware.measure_machine", lambda *_: pytest.fail("it was measured"))
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("the command waited"))
    with StartMark(Path(home) / "starting"):
        exit_code, error, line = failing(*command, "--home", home)
    assert (exit_code, error["code"]) == (1, "starting")
    assert "try again" in line


def test_commands_that_change_something_wait_for_a_start_and_no_longer(
    failing: Any, cli: Any, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dms_peer.home.home.PATIENCE", 0.1)
    Path(home).mkdir(mode=0o700)
    with StartMark(Path(home) / "starting"):
        exit_code, error, _ = failing("onboard", *OFFER, "--home", home)
        assert (exit_code, error["code"]) == (1, "starting")
    cli("onboard", *OFFER, "--home", home)


def test_a_home_that_is_a_file(failing: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    exit_code, error, _ = failing("status", "--home", str(path))
    assert (exit_code, error["code"]) == (1, "bad_home")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"cpu": {"cores": 1}}', '{"cpu": {"cores": 1}, "ram": {"size": "2 parsecs"}, "disk": {}}']
)
def test_a_bad_machine_file(failing: Any, tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    exit_code, error, line = failing("hardware", "--machine", str(path))
    assert (exit_code, error["code"]) == (1, "bad_machine")
    assert str(path) in line


def test_text_from_elsewhere_cannot_steer_the_terminal(failing: Any, tmp_path: Path) -> None:
    _, _, line = failing("hardware", "--machine", str(tmp_path / "\x1b[2J\nfile"))
    assert "\x1b" not in line


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def in_shell(redirection: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as a shell does, with its streams redirected as `redirection` says."""
    line = f'exec "$0" -m dms_peer "$@" {redirection}'
    return subprocess.run(
        ["sh", "-c", line, sys.executable, *arguments], env={**ENVIRONMENT, **environment}, capture_output=True,
        timeout=60, check=False, encoding="utf-8",
    )  # fmt: skip


def test_a_reader_that_goes_away_is_no_failure(home: str) -> None:
    assert run_command(["onboard", "--home", home, *OFFER]) == 0
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "dms_peer", "status", "--home", home]
    try:
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60, check=False
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize(("redirection", "reason"), [("> /dev/full", "No space left on device"), (">&-", "is closed")])
def test_output_that_fails_is_one_sentence(home: str, redirection: str, reason: str, options: list[str]) -> None:
    assert run_command(["onboard", "--home", home, *OFFER]) == 0
    done = in_shell(redirection, "status", "--home", home, *options)
    assert done.returncode == 1
    assert done.stderr.startswith("dms-peer: the output cannot be written: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    failed = in_shell(redirection, "hardware", "--machine", "none", *options)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "machine file" in failed.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_an_error_that_cannot_be_told_is_an_exit_code(redirection: str, home: str) -> None:
    done = in_shell(redirection, "hardware", "--machine", "none", "--home", home)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_no_file_takes_the_number_of_a_closed_stream(home: str) -> None:
    done = in_shell(">&- 2>&-", "onboard", *OFFER, "--home", home)
    assert done.returncode == 1
    for name in ("ledger.db", "key"):
        assert b"dms-peer" not in (Path(home) / name).read_bytes()


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "ascii:strict"])
def test_characters_that_a_locale_lacks_are_replaced(tmp_path: Path, encoding: str) -> None:
    machine = MACHINE | {"cpu": {"cores": 8, "model": "Xeon\u2122"}}
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    shown = in_shell("", "hardware", "--machine", str(tmp_path / "machine.json"), PYTHONIOENCODING=encoding)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Xeon?" in shown.stdout
    read = in_shell("", "hardware", "--machine", str(tmp_path / "machine.json"), "--json", PYTHONIOENCODING=encoding)
    assert json.loads(read.stdout)["cpu"]["model"] == "Xeon\u2122"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_command(["hardware", "--machine", str(tmp_path / "none"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_nobody_expected_is_one_line_too(failing: Any, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("dms_resources.machine.hardware.measure_machine", fail)
    exit_code, error, line = failing("onboard", *OFFER, "--home", home)
    assert (exit_code, error["code"]) == (1, "internal")
    assert "--debug" in line


def test_every_command_has_help_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    names = [getattr(one.callback, "__name__", "").replace("_", "-") for one in command_app().registered_commands]
    assert sorted(names) == sorted((*COMMANDS, "completion"))
    for command in COMMANDS:
        assert run_command([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "--json" in text
        assert "--home" in text
    assert run_command([]) == 0
    assert "onboard" in capsys.readouterr().out


def test_the_readme_names_every_command() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    for command in COMMANDS:
        assert f"dms-peer {command}" in readme


@pytest.mark.parametrize("arguments", [["hardware"], ["onboard", *OFFER], ["status"], ["history"], ["offboard"]])
def test_local_commands_do_not_import_libp2p(home: str, machine_file: str, arguments: list[str]) -> None:
    if arguments[0] not in ("hardware", "onboard"):
        assert run_command(["onboard", "--home", home, "--machine", machine_file, *OFFER]) == 0
    arguments = [*arguments, "--home", home]
    if arguments[0] in ("hardware", "onboard"):
        arguments += ["--machine", machine_file]
    program = (
        "import sys\n"
        "from dms_peer.__main__ import run_command\n"
        "code = run_command(sys.argv[1:])\n"
        "heavy = {name.partition('.')[0] for name in sys.modules} & {'libp2p', 'aioquic', 'multiaddr'}\n"
        "sys.exit(f'exit code {code}, imported {sorted(heavy)}' if code or heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_interrupted_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def history(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dms_peer.cli.commands.history.history", history)
    assert run_command(["history", "--json"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert err == "dms-peer: interrupted\n"


@pytest.mark.parametrize("error", [BrokenPipeError(), ExceptionGroup("tasks", [BrokenPipeError()])])
def test_who_reads_no_further_is_told_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def history() -> None:
        raise error

    monkeypatch.setattr("dms_peer.cli.commands.history.history", history)
    assert run_command(["history"]) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_are_completed(shell: str, cli: Any) -> None:
    script = cli("completion", shell)
    assert "_DMS_PEER_COMPLETE" in script
    words = {"COMP_WORDS": "dms-peer ev", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "dms-peer ev"}
    asked = {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_DMS_PEER_COMPLETE": f"complete_{shell}"}
    program = "import sys; from dms_peer.__main__ import main; sys.argv = ['dms-peer']; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**ENVIRONMENT, **words, **asked}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert "evict" in done.stdout, done.stderr


def test_the_version_is_shown_without_typer() -> None:
    program = (
        "import sys\nfrom dms_peer.__main__ import run_command\n"
        "assert run_command(['--version']) == 0\nassert 'typer' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dms-peer ")


def test_every_command_has_the_options_for_output(cli: Any, failing: Any, home: str, machine_file: str) -> None:
    shown = cli("hardware", "--machine", machine_file, "--color", "always")
    assert "\x1b[1m" in shown
    assert "\x1b" not in cli("hardware", "--machine", machine_file, "--color", "never", "-v")
    code, error, _ = failing("hardware", "--machine", machine_file, "-q", "-v")
    assert (code, error["code"]) == (2, "usage")
    code, error, line = failing("hardware", "--color", "sometimes")
    assert "always" in line
