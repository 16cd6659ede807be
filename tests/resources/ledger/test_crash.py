"""Rules 1, 2 and 8 of the ledger under kill -9: a writer under load is killed repeatedly on one ledger.

Acknowledged changes are there exactly as acknowledged. Of the others, each took place or did not, a group as a whole.
Never is more promised than is offered.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

import dms_resources
from dms_resources.ledger.book import OfferState
from dms_resources.ledger.leases import EndedLease, Lease, LeaseState
from dms_resources.ledger.storage import Contents, SQLiteStorage
from dms_resources.units import decode_value

WRITER = Path(__file__).with_name("crash_writer.py")
KILLS = 200 if os.environ.get("DMS_TEST_PROFILE") == "long" else 20
SEED = os.environ.get("DMS_TEST_SEED", "1")
# This share of the kills is early: while the writer starts, recovers the log, or creates the file.
EARLY = 0.2


@dataclass
class Witness:
    """What the writers said: the last acknowledged answer for each id and offer, and what was under way.

    `ending` are the leases that were released while their jobs ran.
    """

    leases: dict[str, Lease | EndedLease] = field(default_factory=dict)
    ending: dict[str, Lease] = field(default_factory=dict)
    offers: list[tuple[str, int]] = field(default_factory=list)
    acknowledged: Counter[tuple[str, str]] = field(default_factory=Counter)
    under_way: dict[tuple[str, ...], str] = field(default_factory=dict)

    def listen(self, lines: Iterator[dict[str, Any]]) -> int:
        """Note a writer's lines. Returns how many operations were acknowledged."""
        self.under_way.clear()
        done = 0
        for line in lines:
            kind, operation, ids = line["kind"], line["operation"], line["ids"]
            if operation == "onboard":
                self._note_offer(kind, line)
            elif kind == "begin":
                self.under_way[tuple(ids)] = operation
            elif kind in ("done", "refused"):
                del self.under_way[tuple(ids)]
            if kind == "done":
                done += 1
                self._note(operation, ids, line["answer"])
        return done

    def _note_offer(self, kind: str, line: dict[str, Any]) -> None:
        # Between a "begin" and its end both offers are possible.
        if kind == "begin":
            self.offers = [*self.offers[-1:], ("begun", line["offer"])]
        elif kind == "done":
            self.offers = [("done", line["offer"])]
        else:
            self.offers = self.offers[:-1]

    def _note(self, operation: str, ids: list[str], answer: Any) -> None:
        if operation == "gone":
            self._note_gone(*ids)
            return
        answers = answer if isinstance(answer, list) else [answer]
        for key, one in zip(ids, answers, strict=False):
            kind = EndedLease if operation == "release" else Lease
            before, now = self.leases.get(key), msgspec.convert(one, kind, dec_hook=decode_value)
            self.leases[key] = now
            if isinstance(before, Lease) and isinstance(now, EndedLease) and before.runs_job:
                self.ending[key] = before
                self.acknowledged[key, "ending"] += 1
            else:
                self.acknowledged[key, _ACTIONS[operation]] += 1

    def _note_gone(self, key: str) -> None:
        lease = self.leases[key]
        if self.ending.pop(key, None) is not None:
            self.acknowledged[key, "gone"] += 1
            self.acknowledged[key, "end"] += 1
        elif isinstance(lease, Lease) and lease.job is not None:
            self.leases[key] = replace(lease, job=replace(lease.job, gone=True))
            self.acknowledged[key, "gone"] += 1


_ACTIONS = {
    "commit": "commit",
    "group": "commit",
    "renew": "renew",
    "allocate": "allocate",
    "attach": "attach",
    "release": "end",
}


def _start(ledger: Path, number: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(dms_resources.__file__).parents[2])}
    command = [sys.executable, str(WRITER), str(ledger), SEED, str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, bufsize=0)


def _run_and_kill(ledger: Path, number: int, chance: random.Random) -> list[dict[str, Any]]:
    """Kill early during the start, otherwise after a number of lines and a moment, so that a slow machine shows as
    much.
    """
    early, lines = chance.random() < EARLY, chance.randint(1, 400)
    kill_at, moment = time.monotonic() + chance.uniform(0.0, 0.4), chance.uniform(0.0, 0.02)
    heard = b""
    with _start(ledger, number) as writer:
        assert writer.stdout is not None
        os.set_blocking(writer.stdout.fileno(), not early)
        while time.monotonic() < kill_at if early else b'"ready"' not in heard or heard.count(b"\n") < lines:
            heard += writer.stdout.read(1 << 16) or b""
            assert writer.poll() is None, "the writer ended by itself"
            if early:
                time.sleep(0.001)
        if not early:
            time.sleep(moment)
        writer.kill()
        os.set_blocking(writer.stdout.fileno(), True)
        heard += writer.stdout.read()
    # A line that the kill cut off was not received.
    return [json.loads(line) for line in heard.split(b"\n")[:-1]]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.db"


def test_nothing_acknowledged_is_lost_and_nothing_is_half_done(ledger: Path) -> None:
    chance, witness, fences = random.Random(SEED), Witness(), set[int]()
    done = 0
    for number in range(KILLS):
        highest = max(fences, default=0)
        heard = _run_and_kill(ledger, number, chance)
        done += witness.listen(iter(heard))
        with SQLiteStorage(ledger, boot_id="any") as storage:
            contents = storage.load()
            told = Counter((entry.lease_id, entry.action) for _, entry in storage.history(limit=1_000_000))
        _check_leases(witness, contents)
        _check_groups(contents)
        _check_offer(witness, contents.offer)
        _check_history(witness, told)
        _check_amounts(contents)
        _check_fences(witness, contents, fences, highest, number)
        _adopt(witness, contents)
    assert done > 20 * KILLS, "the writers did too little to show anything"
    ending = sum(action == "ending" for _, action in witness.acknowledged)
    assert ending >= KILLS // 4, "too few leases ended while jobs ran"


def _check_leases(witness: Witness, contents: Contents) -> None:
    """Each id is as it was last acknowledged, or as the pending operation left it."""
    stored = {one.lease.lease_id: one.lease for one in contents.leases}
    alive = {key: lease for key, lease in stored.items() if lease.state is not LeaseState.ENDING}
    ended = {end.lease_id: end for end in contents.ended}
    assert not alive.keys() & ended.keys(), "a lease has ended and stands"
    moving = {key: operation for ids, operation in witness.under_way.items() for key in ids}
    _check_ending(witness, stored, ended, moving)
    for key, answer in witness.leases.items():
        now = alive.get(key) or ended.get(key)
        if now == answer:
            continue
        assert key in moving, f"{key} was acknowledged as {answer} and is {now}"
        assert isinstance(answer, Lease), f"{key} had ended and is {now}"
        if moving[key] == "gone":
            assert isinstance(now, Lease)
            assert answer.job is not None
            assert now == replace(answer, job=replace(answer.job, gone=True))
        elif moving[key] == "release":
            assert isinstance(now, EndedLease)
            assert now.fence == answer.fence
        else:
            assert isinstance(now, Lease)
            # Only what the operation changes has changed.
            assert (now.resources, now.ports, now.fence) == (answer.resources, answer.ports, answer.fence)
    unknown = (alive.keys() | ended.keys()) - witness.leases.keys() - moving.keys()
    assert not unknown, f"nobody asked for {unknown}"


def _check_ending(
    witness: Witness, stored: dict[str, Lease], ended: dict[str, EndedLease], moving: dict[str, str]
) -> None:
    """A lease that was released while its job ran counts, whole, until the job is gone; no other one does."""
    ending = {key: lease for key, lease in stored.items() if lease.state is LeaseState.ENDING}
    for key, before in witness.ending.items():
        if key not in ending:
            assert moving.get(key) == "gone", f"{key} is free although its job runs"
            continue
        now = ending[key]
        assert (now.resources, now.ports, now.fence, now.job) == (
            before.resources,
            before.ports,
            before.fence,
            before.job,
        )
    for key, lease in ending.items():
        assert lease.ended == ended[key]
        assert lease.runs_job
        if key not in witness.ending:
            before = witness.leases[key]
            assert moving.get(key) == "release", f"nobody released {key}"
            assert isinstance(before, Lease)
            assert before.runs_job


def _check_groups(contents: Contents) -> None:
    """Of a pending group all members are there or none. (After its acknowledgement its members end one by one.)"""
    ended = {end.lease_id for end in contents.ended}
    groups: dict[str, set[str]] = {}
    for stored in contents.leases:
        if stored.lease.group:
            groups.setdefault(stored.lease.group, set()).add(stored.lease.lease_id)
    for first, members in groups.items():
        # The members' numbers are consecutive, and they are released in that order.
        name, number = first.rsplit("-", 1)
        last = max(int(member.rsplit("-", 1)[1]) for member in members)
        expected = {f"{name}-{one}" for one in range(int(number), last + 1)}
        assert expected <= members | ended, f"half of the group {first} is there"


def _check_offer(witness: Witness, offer: OfferState) -> None:
    possible = {index for _, index in witness.offers}
    if offer.onboarded is None:
        assert not any(kind == "done" for kind, _ in witness.offers), "what was onboarded is forgotten"
        return
    found = (48_000, 56_000, 64_000).index(offer.onboarded.cpu.cores.millicores)
    assert found in possible
    witness.offers = [("done", found)]


def _check_history(witness: Witness, told: Counter[tuple[str, str]]) -> None:
    missing = witness.acknowledged - told
    assert not missing, f"acknowledged and not in the history: {missing}"


def _check_amounts(contents: Contents) -> None:
    """No dimension, GPU or port is promised beyond what is offered."""
    leases = [stored.lease for stored in contents.leases]
    if contents.offer.onboarded is None:
        assert not leases
        return
    offered = contents.offer.onboarded
    assert sum(lease.resources.cpu.cores.millicores for lease in leases) <= offered.cpu.cores.millicores
    assert sum(lease.resources.ram.size for lease in leases) <= offered.ram.size
    assert sum(lease.resources.disk.size for lease in leases) <= offered.disk.size
    taken: Counter[str] = Counter()
    for lease in leases:
        taken.update({gpu.uuid: gpu.vram for gpu in lease.resources.gpus})
    vram = {gpu.uuid: gpu.vram for gpu in offered.gpus}
    assert all(amount <= vram[uuid] for uuid, amount in taken.items())
    ports = [port for lease in leases for port in lease.ports]
    assert len(ports) == len(set(ports))
    assert all(port in offered.port_range for port in ports)


def _check_fences(witness: Witness, contents: Contents, fences: set[int], highest: int, number: int) -> None:
    """A fencing number is used once, and is greater than all before it, also across restarts."""
    fresh = {
        **{key: answer.fence for key, answer in witness.leases.items()},
        **{stored.lease.lease_id: stored.lease.fence for stored in contents.leases},
    }
    new = [fence for key, fence in fresh.items() if key.startswith(f"round{number}-")]
    assert len(new) == len(set(new))
    assert all(fence > highest for fence in new)
    assert contents.fence >= max([highest, *new])
    fences.update(new)


def _adopt(witness: Witness, contents: Contents) -> None:
    """What a pending operation left has to stay from now on."""
    for ids in witness.under_way:
        for key in ids:
            witness.leases.pop(key, None)
    for stored in contents.leases:
        witness.leases[stored.lease.lease_id] = stored.lease
    witness.ending = {
        stored.lease.lease_id: stored.lease for stored in contents.leases if stored.lease.state is LeaseState.ENDING
    }
    for end in contents.ended:
        witness.leases[end.lease_id] = end
