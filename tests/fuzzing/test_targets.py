"""Hostile bytes for all code that reads bytes of others: a small part of what `tests/fuzzing/run.py` does for hours."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dms_fuzzing.conversations import fuzz_client, fuzz_service, provider
from dms_fuzzing.corpus import corpus
from dms_fuzzing.mutation import mutated
from dms_fuzzing.parsers import PARSERS, message_types

# The slow targets write a file or parse YAML for each input.
INPUTS = {"ledgers": 150, "ensembles": 300, "owner_files": 300, "tokens": 1000}


@pytest.mark.parametrize("target", PARSERS)
def test_seeds_are_understood(target: str) -> None:
    for seed in corpus(target):
        PARSERS[target](seed)


@pytest.mark.parametrize("target", PARSERS)
def test_mutations_of_what_is_valid(target: str) -> None:
    for data in islice(mutated(corpus(target), random.Random(1)), INPUTS.get(target, 3000)):
        PARSERS[target](data)


@pytest.mark.parametrize("target", [name for name in PARSERS if name != "ledgers"])
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(data=st.binary(max_size=512))
def test_any_bytes(target: str, data: bytes) -> None:
    PARSERS[target](data)


def test_every_message_is_a_target() -> None:
    assert {"BidRequest", "Bid", "CommitRequest", "FreeRequest", "BidAnswer", "FreeResources"} <= set(message_types())


async def test_a_service_survives_what_it_is_sent(autojump_clock: Any) -> None:
    async with provider() as (services, check):
        for data in islice(mutated(corpus("service"), random.Random(2)), 1000):
            await fuzz_service(data, services)
            check()


async def test_a_client_survives_what_it_is_answered(autojump_clock: Any) -> None:
    for data in islice(mutated(corpus("client"), random.Random(3)), 500):
        await fuzz_client(data)


def test_the_mutations_repeat() -> None:
    def first() -> list[bytes]:
        return list(islice(mutated([b"one", b"another"], random.Random(7)), 100))

    assert first() == first()
