import errno
import logging
import subprocess
import sys

import pytest
import trio

from dms_host.logs import RateLimiter, _FirstLines, log_limited, route_library_logs


@pytest.fixture(autouse=True)
def library_logger(monkeypatch):
    """The library's logger as it was before, without the handlers that the test added."""
    monkeypatch.delenv("LIBP2P_DEBUG", raising=False)
    logger = logging.getLogger("libp2p")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers.clear()
    logging.getLogger("dms_peer").setLevel(logging.INFO)
    yield logger
    logging.getLogger("dms_peer").setLevel(logging.NOTSET)
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_reports_become_one_line_without_a_traceback(library_logger, caplog) -> None:
    route_library_logs()
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("libp2p.host").exception("Failed to open stream:\n  Error: many\n  lines")
    (record,) = [record for record in caplog.records if record.name == "dms_peer.libp2p"]
    assert record.getMessage() == "libp2p.host: Failed to open stream:"
    assert record.exc_info is None
    assert record.levelno == logging.INFO


def test_called_twice_it_logs_once(library_logger, caplog) -> None:
    route_library_logs()
    route_library_logs()
    logging.getLogger("libp2p.host").warning("once")
    assert len([record for record in caplog.records if record.name == "dms_peer.libp2p"]) == 1


def test_debug_lines_are_not_even_made(library_logger) -> None:
    route_library_logs()
    assert not logging.getLogger("libp2p.stream_muxer").isEnabledFor(logging.INFO)


def test_the_librarys_own_switch_is_left_alone(library_logger, monkeypatch) -> None:
    monkeypatch.setenv("LIBP2P_DEBUG", "DEBUG")
    route_library_logs()
    assert not any(isinstance(handler, _FirstLines) for handler in library_logger.handlers)


def test_a_flood_is_bounded_and_counted(library_logger, caplog, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dms_host.logs.time.monotonic", lambda: now[0])
    logger, limiter = logging.getLogger("dms_peer.test"), RateLimiter(burst=5, per_second=1)
    for _ in range(1000):
        log_limited(logger, limiter, logging.WARNING, "line")
    assert len(caplog.records) == 5
    now[0] += 2
    log_limited(logger, limiter, logging.WARNING, "line")
    assert [record.getMessage() for record in caplog.records[5:]] == ["995 similar lines left out", "line"]


def test_opening_a_host_prints_nothing_and_installs_no_handler_that_prints() -> None:
    code = """
import logging, sys, trio
from dms_host import open_host, dial, host_addresses
from dms_host.keys.identity import new_identity
async def main():
    async with open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"]) as a, open_host(new_identity()) as b:
        await dial(b, host_addresses(a)[0])
        # What the library says about ordinary ends goes through the root logger and its own.
        logging.warning("through the root logger")
        logging.getLogger("libp2p.swarm").error("several\\nlines")
trio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert done.stderr == ""


async def test_descriptors_that_run_out_are_one_line(library_logger, caplog, monkeypatch, autojump_clock) -> None:
    accepting = logging.getLogger("trio.serve_listeners")
    monkeypatch.setattr(accepting, "filters", [])
    route_library_logs()
    route_library_logs()

    class Exhausted(trio.abc.Listener):
        calls = 0

        async def accept(self):
            self.calls += 1
            await trio.lowlevel.checkpoint()
            raise OSError(errno.EMFILE, "Too many open files")

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    listener = Exhausted()
    with trio.move_on_after(20):
        await trio.serve_listeners(trio.aclose_forcefully, [listener])
    assert listener.calls > 100
    (record,) = caplog.records
    assert "no connection can be accepted (EMFILE)" in record.getMessage()
    assert record.exc_info is None
