"""GPU placement: complete, independent of order, best fit, never two jobs on an exclusive device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dms_resources.components import GPU, GPUVendor
from dms_resources.demands import GPUDemand
from dms_resources.placement import DeviceState, Placement, place, place_together

VENDORS = (GPUVendor.NVIDIA, GPUVendor.AMD)
# A hundred examples miss what only some shapes show.
MANY = settings(max_examples=max(300, settings().max_examples))
MODELS = ("NVIDIA A100-SXM4-80GB", "NVIDIA T4", "NVIDIA T400 4GB")


def device(
    uuid: str,
    total: int,
    used: int = 0,
    *,
    users: int | None = None,
    exclusive: bool = False,
    missing: bool = False,
    vendor: GPUVendor = GPUVendor.NVIDIA,
    model: str = MODELS[0],
) -> DeviceState:
    return DeviceState(
        device=GPU(uuid=uuid, vram=total, vendor=vendor, model=model),
        total=total,
        used=used,
        users=(used > 0) if users is None else users,
        exclusive=exclusive,
        missing=missing,
    )


def devices(*totals: int) -> list[DeviceState]:
    return [device(f"gpu-{number}", total) for number, total in enumerate(totals)]


def wishes(*amounts: int) -> list[GPUDemand]:
    return [GPUDemand(vram=amount) for amount in amounts]


def _on(placed: Sequence[Placement] | None) -> list[str]:
    assert placed is not None
    return [one.uuid for one in placed]


@st.composite
def demands(draw: st.DrawFn) -> GPUDemand:
    return GPUDemand(
        vram=draw(st.integers(0, 12)),
        exclusive=draw(st.integers(0, 3)) == 0,
        vendor=draw(st.sampled_from((GPUVendor.UNKNOWN, GPUVendor.UNKNOWN, GPUVendor.NONE, *VENDORS))),
        model=draw(st.sampled_from(("", "", "", "A100", "t4", "T400"))),
        uuid=draw(st.sampled_from(("", "", "", "gpu-0", "gpu-2"))),
    )


@st.composite
def states(draw: st.DrawFn, most: int = 5) -> list[DeviceState]:
    found = []
    for number in range(draw(st.integers(0, most))):
        total = draw(st.integers(1, 12))
        users = draw(st.integers(0, 2))
        exclusive = users == 1 and draw(st.booleans())
        found.append(
            device(
                f"gpu-{number}",
                total,
                total if exclusive else draw(st.integers(0, total)) if users else 0,
                users=users,
                exclusive=exclusive,
                missing=draw(st.integers(0, 6)) == 0,
                vendor=draw(st.sampled_from(VENDORS)),
                model=draw(st.sampled_from(MODELS)),
            )
        )
    return found


def _may_take(demand: GPUDemand, state: DeviceState) -> bool:
    """Written from the rules, not from the code."""
    words = state.device.model.lower().replace("-", " ").split()
    asked_for = (
        demand.vendor in (GPUVendor.UNKNOWN, GPUVendor.NONE, state.device.vendor)
        and demand.uuid in ("", state.device.uuid)
        and all(word in words for word in demand.model.lower().split())
    )
    if not asked_for or state.missing or state.exclusive:
        return False
    if demand.exclusive:
        return not state.users and demand.vram <= state.total
    return demand.vram <= state.total - state.used


def _all_placements(wanted: Sequence[GPUDemand], there: Sequence[DeviceState]) -> Iterator[tuple[DeviceState, ...]]:
    for chosen in itertools.permutations(there, len(wanted)):
        if all(map(_may_take, wanted, chosen)):
            yield chosen


@MANY
@given(st.lists(demands(), max_size=4), states())
def test_a_placement_is_found_where_one_exists_and_only_there(
    wanted: list[GPUDemand], there: list[DeviceState]
) -> None:
    possible = list(_all_placements(wanted, there))
    placed = place(wanted, there)
    assert (placed is not None) == bool(possible)
    if placed is not None:
        by_uuid = {state.device.uuid: state for state in there}
        assert tuple(by_uuid[one.uuid] for one in placed) in possible
        assert [one.exclusive for one in placed] == [demand.exclusive for demand in wanted]
        for one, demand in zip(placed, wanted, strict=True):
            assert one.vram == (by_uuid[one.uuid].total if demand.exclusive else demand.vram)


@MANY
@given(st.lists(demands(), max_size=4), states())
def test_the_devices_with_the_least_free_are_taken(wanted: list[GPUDemand], there: list[DeviceState]) -> None:
    placed = place(wanted, there)
    if placed is None:
        return
    free = {state.device.uuid: state.free for state in there}
    lightest = min(sorted(state.free for state in chosen) for chosen in _all_placements(wanted, there))
    assert sorted(free[one.uuid] for one in placed) == lightest


@MANY
@given(st.lists(demands(), max_size=4), states(), st.randoms(use_true_random=False))
def test_neither_order_matters(wanted: list[GPUDemand], there: list[DeviceState], random: Random) -> None:
    placed = place(wanted, there)
    order = list(range(len(wanted)))
    random.shuffle(order)
    shuffled = list(there)
    random.shuffle(shuffled)
    again = place([wanted[number] for number in order], shuffled)
    if placed is None:
        assert again is None
        return
    assert again is not None
    assert sorted((repr(wanted[n]), one.uuid) for n, one in enumerate(placed)) == sorted(
        (repr(wanted[n]), one.uuid) for n, one in zip(order, again, strict=True)
    )


def test_24_and_10_satisfy_8_and_20_in_any_order() -> None:
    assert _on(place(wishes(8, 20), devices(24, 10))) == ["gpu-1", "gpu-0"]
    assert _on(place(wishes(20, 8), devices(24, 10))) == ["gpu-0", "gpu-1"]
    assert _on(place(wishes(8, 20), devices(10, 24))) == ["gpu-0", "gpu-1"]


def test_one_card_of_16_does_not_satisfy_two_of_8() -> None:
    assert place(wishes(8, 8), devices(16)) is None
    assert place(wishes(8), devices(16)) is not None


def test_nothing_satisfies_a_gpu_on_a_machine_without_one() -> None:
    assert place(wishes(0), []) is None
    assert place([], []) == ()


def test_large_cards_stay_whole() -> None:
    assert _on(place(wishes(8), devices(80, 10, 24))) == ["gpu-1"]
    assert _on(place(wishes(8), [device("new", 24), device("begun", 24, 10)])) == ["begun"]


def test_an_exclusive_device_is_unused_before_and_whole_after() -> None:
    alone = GPUDemand(vram=4, exclusive=True)
    assert place([alone], [device("used", 24, 1)]) is None
    assert place([alone], [device("used-by-nothing", 24, 0, users=1)]) is None
    placed = place([alone], [device("used", 24, 1), device("free", 40)])
    assert placed == (Placement(uuid="free", vram=40, exclusive=True),)
    taken = device("free", 40).take(alone)
    assert taken.free == 0
    assert not taken.fits(GPUDemand(vram=0))


def test_a_wish_is_for_a_vendor_a_model_or_a_certain_device() -> None:
    there = [
        device("t4", 16, model="NVIDIA T4"),
        device("t400", 16, model="NVIDIA T400 4GB"),
        device("amd", 16, vendor=GPUVendor.AMD, model="Instinct MI50"),
        device("a100", 80),
    ]
    assert _on(place([GPUDemand(vram=8, model="T4")], there)) == ["t4"]
    assert _on(place([GPUDemand(vram=8, model="nvidia a100")], there)) == ["a100"]
    assert _on(place([GPUDemand(vram=8, vendor=GPUVendor.AMD)], there)) == ["amd"]
    assert _on(place([GPUDemand(vram=8, uuid="t400")], there)) == ["t400"]
    assert place([GPUDemand(vendor=GPUVendor.INTEL)], there) is None
    assert place([GPUDemand(uuid="t4", vendor=GPUVendor.AMD)], there) is None


def test_a_device_that_is_gone_is_not_given() -> None:
    assert place(wishes(1), [device("gone", 24, missing=True)]) is None


def _fit_together(jobs: Sequence[Sequence[GPUDemand]], there: Sequence[DeviceState]) -> bool:
    """Exhaustive search."""
    if not jobs:
        return True
    for chosen in itertools.permutations(range(len(there)), len(jobs[0])):
        if all(_may_take(wish, there[number]) for wish, number in zip(jobs[0], chosen, strict=True)):
            left = list(there)
            for wish, number in zip(jobs[0], chosen, strict=True):
                left[number] = left[number].take(wish)
            if _fit_together(jobs[1:], left):
                return True
    return False


@MANY
@given(st.lists(st.lists(demands(), max_size=2), max_size=3), states(most=4))
def test_several_jobs_are_placed_together_where_they_can_be(
    jobs: list[list[GPUDemand]], there: list[DeviceState]
) -> None:
    placed = place_together(jobs, iter(there))
    assert (placed is not None) == _fit_together(jobs, there)
    if placed is None:
        return
    left = {state.device.uuid: state for state in there}
    for wanted, placements in zip(jobs, placed, strict=True):
        assert len({one.uuid for one in placements}) == len(wanted)
        for wish, one in zip(wanted, placements, strict=True):
            assert _may_take(wish, left[one.uuid])
            assert one.vram == left[one.uuid].bytes_for(wish)
        for wish, one in zip(wanted, placements, strict=True):
            left[one.uuid] = left[one.uuid].take(wish)


def test_jobs_that_a_greedy_placement_misses_are_placed_together() -> None:
    # The largest first, each on the tightest card: 6 and 4, 4 and 4 and 3, and no space for the second 3.
    jobs = [wishes(6), wishes(4), wishes(4), wishes(4), wishes(3), wishes(3)]
    placed = place_together(jobs, devices(12, 12))
    assert placed is not None
    assert [sum(one.vram for (one,) in placed if one.uuid == uuid) for uuid in ("gpu-0", "gpu-1")] == [12, 12]


def test_a_search_does_not_go_where_there_cannot_be_enough_room() -> None:
    # Without the check of what is left for the rest, ten times as many steps do not find it.
    mib = [
        *([28458], [23146], [40227], [38361], [40590], [20633], [22192], [37235], [45298], [41874, 39433]),
        *([39227], [21385], [28092, 33954], [22694], [38127, 44302], [37286]),
    ]
    jobs = [wishes(*one) for one in mib]
    placed = place_together(jobs, devices(*[81920] * 8))
    assert placed is not None
    for number in range(8):
        assert sum(one.vram for job in placed for one in job if one.uuid == f"gpu-{number}") <= 81920
    # An impossible placement is detected at once.
    assert place_together([wishes(41000)] * 17, devices(*[82000] * 8), steps=100) is None


def test_a_hopeless_search_ends() -> None:
    there = devices(*range(10, 26))
    jobs = [wishes(vram, vram - 1) for vram in range(6, 12) for _ in range(5)]
    assert place_together(jobs, there, steps=1000) is None
    assert place_together([wishes(26), wishes(1)], there) is None


def test_a_thousand_jobs_do_not_exhaust_the_stack() -> None:
    there = devices(999, 999)
    assert place_together([wishes(1)] * 1998, there) is not None
    assert place_together([wishes(1)] * 1999, there) is None


@pytest.mark.parametrize("count", [1, 2])
def test_what_cannot_be_placed_alone_is_not_searched_for(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[object] = []
    monkeypatch.setattr("dms_resources.placement._search", lambda *rest: searched.append(rest))
    assert place_together([wishes(30)] * count, devices(24, 24)) is None
    assert not searched


def test_a_device_is_handed_on_where_another_job_can_use_nothing_else() -> None:
    there = [device("t4", 10, model="NVIDIA T4"), device("a100", 12)]
    assert _on(place([GPUDemand(vram=8), GPUDemand(vram=4, model="T4")], there)) == ["a100", "t4"]


def test_who_gets_which_does_not_depend_on_who_is_named_first() -> None:
    assert _on(place(wishes(8, 9), devices(24, 10))) == ["gpu-0", "gpu-1"]
    assert _on(place(wishes(9, 8), devices(24, 10))) == ["gpu-1", "gpu-0"]


def test_devices_are_alike_only_when_they_are_of_one_kind() -> None:
    there = [device("gpu-0", 8, vendor=GPUVendor.AMD), device("gpu-1", 8)]
    placed = place_together([wishes(7), [GPUDemand(vram=6, vendor=GPUVendor.AMD)]], there)
    assert placed is not None
    assert [_on(one) for one in placed] == [["gpu-1"], ["gpu-0"]]
