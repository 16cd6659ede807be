"""How the tests are distributed: the whole suite among workers, a part of it in one process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

__all__ = ["pytest_collection_modifyitems", "pytest_xdist_auto_num_workers", "restored_logging", "unset_width"]

_PACKAGES = ("dms_host", "dms_peer", "dms_protocols", "dms_resources", "libp2p")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One worker more than there are cores, because most tests wait more than they compute; none for named tests.

    Each worker takes ten seconds of computing to start, as long as a single file takes. `-n` with a number and
    PYTEST_XDIST_AUTO_NUM_WORKERS override it.
    """
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that compute for a minute first and in one worker, so that the others wait meanwhile, not afterwards.

    Of these, tests that can use all cores come last: they use them when the other workers have finished.
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
    """Workers inherit COLUMNS, which would cut tables that a test needs as a whole."""
    monkeypatch.delenv("COLUMNS", raising=False)
