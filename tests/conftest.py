"""How the suite is shared out: the whole of it among workers, a part of it not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

__all__ = ["pytest_collection_modifyitems", "pytest_xdist_auto_num_workers", "restored_logging", "unset_width"]

_PACKAGES = ("dms_host", "dms_peer", "dms_protocols", "dms_resources", "libp2p")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A worker more than there are cores, since most tests wait more than they compute; none for named tests.

    Each worker takes ten seconds of computing to begin, which a single file is done in.
    `-n` with a number and PYTEST_XDIST_AUTO_NUM_WORKERS go before.
    """
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What computes for a minute goes first and to one worker, so that the others wait meanwhile, not afterwards.

    Of that, what can use all cores comes last: it takes them when the other workers are done.
    """
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    computes = item.get_closest_marker("computes")
    if computes is None:
        return 2
    return 1 if computes.kwargs.get("all_cores") else 0


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo what a command did to logging in this process, so that the next test sees its own levels and handlers."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in _PACKAGES)]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def unset_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of the suite inherit COLUMNS, which cuts tables that a test looks at as a whole."""
    monkeypatch.delenv("COLUMNS", raising=False)
