"""Assigns GPUs to demands: a complete matching, best fit first.

Rules:
1. Two requested GPUs are two devices. Several leases may share a device if its memory is enough.
2. A device that is requested exclusively, or whose driver allows only one process, must be unused. It is taken whole.
3. If a placement exists, it is found.
4. Of the possible placements, the one that uses the devices with the least free VRAM is chosen, so that large cards
   stay whole.
5. The result depends neither on the order of the demands nor on that of the devices.

The sets of devices that can be matched form a transversal matroid. Therefore no search is needed: the devices are taken
in order of free VRAM, and each is kept if the matching can still be augmented (Kuhn's algorithm). This finds the
lightest set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from .components import GPU
from .demands import GPUDemand

__all__ = ["DeviceState", "Placement", "place", "place_together"]

# The search is as deep as the number of requested GPUs.
_MOST_SEARCHED = 64


class DeviceState(Struct, frozen=True, kw_only=True):
    """One offered device at one instant: `total` bytes are offered, `used` of them are taken by `users` leases."""

    device: GPU
    total: int
    used: int = 0
    users: int = 0
    exclusive: bool = False
    missing: bool = False

    @property
    def free(self) -> int:
        """The bytes that could be taken now."""
        return 0 if self.exclusive or self.missing else max(0, self.total - self.used)

    def fits(self, demand: GPUDemand) -> bool:
        """Whether this demand could be placed on this device alone."""
        if self.exclusive or self.missing or not demand.accepts(self.device):
            return False
        return self.users == 0 and self.total >= demand.vram if self.is_whole(demand) else self.free >= demand.vram

    def is_whole(self, demand: GPUDemand) -> bool:
        """Whether this demand would get the whole device, by its own request or because of the device's mode."""
        return demand.exclusive or self.device.exclusive

    def take(self, demand: GPUDemand) -> DeviceState:
        """The device with this demand on it. The caller has checked `fits`."""
        return DeviceState(
            device=self.device,
            total=self.total,
            used=self.used + self.bytes_for(demand),
            users=self.users + 1,
            exclusive=self.is_whole(demand),
        )

    def bytes_for(self, demand: GPUDemand) -> int:
        """The bytes that this demand takes here: the whole device if exclusive."""
        return self.total if self.is_whole(demand) else demand.vram


class Placement(Struct, frozen=True, kw_only=True):
    """One demand on one device, with the bytes it takes there."""

    uuid: str
    vram: int
    exclusive: bool = False


def place(demands: Sequence[GPUDemand], devices: Iterable[DeviceState]) -> tuple[Placement, ...] | None:
    """Find a device for each demand of one job; None if no placement exists.

    The placements are in the order of the demands.
    """
    if not demands:
        return ()
    if len(demands) == 1:
        return _place_one(demands[0], devices)
    order = sorted(range(len(demands)), key=lambda index: _demand_key(demands[index]))
    ranked = [demands[index] for index in order]
    states = sorted(devices, key=_device_key)
    if len(ranked) > len(states):
        return None
    fits: list[list[bool]] = []
    for number, demand in enumerate(ranked):
        # Most jobs request several GPUs of one kind, which are adjacent here.
        alike = number and demand == ranked[number - 1]
        fits.append(fits[-1] if alike else [state.fits(demand) for state in states])
        if not any(fits[-1]):
            return None
    chosen = _lightest_devices(fits, len(states))
    if chosen is None:
        return None
    # Again over the chosen devices alone: the largest demand first, each on the smallest device that leaves a matching.
    assigned = [states[device] for device in _pair_up(fits, chosen)]
    placements = [
        (index, Placement(uuid=state.device.uuid, vram=state.bytes_for(demand), exclusive=state.is_whole(demand)))
        for index, demand, state in zip(order, ranked, assigned, strict=True)
    ]
    return tuple(placement for _, placement in sorted(placements, key=lambda pair: pair[0]))


def place_together(
    jobs: Sequence[Sequence[GPUDemand]], devices: Iterable[DeviceState], *, steps: int = 2_000
) -> list[tuple[Placement, ...]] | None:
    """Place several jobs together; None if no placement exists, or none was found within `steps`.

    Jobs may share a device, so this is bin packing: the greedy placement is tried first (largest job first), then a
    search over all of them. `steps` bounds it (some 20 ms), because its worst case is exponential and the requester
    chooses the input. It does not start for more than 64 GPUs.
    """
    if len(jobs) == 1:
        # `place` is complete for one job: what cannot be placed alone cannot be placed with others.
        alone = place(jobs[0], devices)
        return None if alone is None else [alone]
    states = {state.device.uuid: state for state in devices}
    untouched = dict(states)
    order = sorted(range(len(jobs)), key=lambda index: _job_key(jobs[index]))
    result: list[tuple[Placement, ...]] = [() for _ in jobs]
    for index in order:
        placed = place(jobs[index], states.values())
        if placed is None:
            break
        result[index] = placed
        _take_all(states, jobs[index], placed)
    else:
        return result
    if any(place(job, untouched.values()) is None for job in jobs):
        return None
    if sum(map(len, jobs)) > _MOST_SEARCHED:
        return None
    return _search(jobs, order, untouched, _Budget(steps))


def _place_one(demand: GPUDemand, devices: Iterable[DeviceState]) -> tuple[Placement, ...] | None:
    # This is the result of the matching if there is only one demand.
    state = min((state for state in devices if state.fits(demand)), key=_device_key, default=None)
    if state is None:
        return None
    return (Placement(uuid=state.device.uuid, vram=state.bytes_for(demand), exclusive=state.is_whole(demand)),)


class _Budget:
    """Counts down the steps of a search."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self) -> bool:
        self.left -= 1
        return self.left >= 0


def _search(
    jobs: Sequence[Sequence[GPUDemand]],
    order: Sequence[int],
    states: dict[str, DeviceState],
    budget: _Budget,
) -> list[tuple[Placement, ...]] | None:
    slots = [
        (index, number, demand)
        for index in order
        for number, demand in sorted(enumerate(jobs[index]), key=lambda pair: _demand_key(pair[1]))
    ]
    taken: dict[tuple[int, int], Placement] = {}
    pinned = any(wish.uuid for job in jobs for wish in job)
    owned: list[set[str]] = [set() for _ in jobs]
    # For this slot and all later ones: the sum of their needs, and the smallest of them.
    needed, least = [0], [0]
    for _, _, demand in reversed(slots):
        needed.append(needed[-1] + demand.vram)
        least.append(min(least[-1], demand.vram) if len(least) > 1 else demand.vram)
    needed.reverse()
    least.reverse()

    def descend(depth: int) -> bool:
        if depth == len(slots):
            return True
        free = [(state.free, state) for state in states.values()]
        if needed[depth] > sum(amount for amount, _ in free if amount >= least[depth]):
            return False
        index, number, demand = slots[depth]
        own = owned[index]
        tried: set[object] = set()
        for _, state in sorted(free, key=lambda pair: (pair[0], pair[1].total, pair[1].device.uuid)):
            if state.device.uuid in own or not state.fits(demand):
                continue
            # Two devices in the same state lead to the same result, so one of them is enough.
            alike = (state.total, state.used, state.users, state.device.vendor, state.device.model)
            if not pinned and not own and alike in tried:
                continue
            tried.add(alike)
            if not budget.spend():
                return False
            uuid = state.device.uuid
            taken[index, number] = Placement(uuid=uuid, vram=state.bytes_for(demand), exclusive=state.is_whole(demand))
            states[uuid] = state.take(demand)
            own.add(uuid)
            if descend(depth + 1):
                return True
            own.remove(uuid)
            states[uuid] = state
            del taken[index, number]
        return False

    if not descend(0):
        return None
    return [tuple(taken[index, number] for number in range(len(job))) for index, job in enumerate(jobs)]


def _take_all(states: dict[str, DeviceState], demands: Sequence[GPUDemand], placed: Sequence[Placement]) -> None:
    for demand, placement in zip(demands, placed, strict=True):
        states[placement.uuid] = states[placement.uuid].take(demand)


def _device_key(state: DeviceState) -> tuple[int, int, str]:
    return (state.free, state.total, state.device.uuid)


def _demand_key(demand: GPUDemand) -> tuple[bool, int, str, str, str]:
    return (not demand.exclusive, -demand.vram, demand.uuid, demand.model, demand.vendor.value)


def _job_key(demands: Sequence[GPUDemand]) -> tuple[int, list[tuple[bool, int, str, str, str]]]:
    return (-sum(demand.vram for demand in demands), sorted(_demand_key(demand) for demand in demands))


def _lightest_devices(fits: Sequence[Sequence[bool]], devices: int) -> dict[int, int] | None:
    """The device of each demand, of the lightest set of devices. `fits` has a row for each demand."""
    matching: dict[int, int] = {}
    for device in range(devices):
        if len(matching) == len(fits):
            break
        _augment(device, fits, matching, set())
    return matching if len(matching) == len(fits) else None


def _augment(device: int, fits: Sequence[Sequence[bool]], matching: dict[int, int], seen: set[int]) -> bool:
    for number, row in enumerate(fits):
        if number in seen or not row[device]:
            continue
        seen.add(number)
        other = matching.get(number)
        if other is None or _augment(other, fits, matching, seen):
            matching[number] = device
            return True
    return False


def _pair_up(fits: Sequence[Sequence[bool]], matching: dict[int, int]) -> list[int]:
    """Over the devices of the matching: each demand in turn on the first device that leaves one for all after it."""
    left = sorted(matching.values())
    for number, row in enumerate(fits):
        for device in left:
            if not row[device]:
                continue
            if matching[number] == device:
                break
            # The demand on that device moves to another one, along a path that ends at the device that is exchanged for
            # it.
            trial = {other: taken for other, taken in matching.items() if other > number and taken != device}
            if _augment(matching[number], fits, trial, set(range(number + 1))):
                matching = {**matching, **trial, number: device}
                break
        left.remove(matching[number])
    return [matching[number] for number in range(len(fits))]
