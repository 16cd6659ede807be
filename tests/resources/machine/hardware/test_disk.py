"""What of a file system may be offered, and the device under it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dms_resources.machine.hardware import HOST, Roots
from dms_resources.machine.hardware.disk import (
    BlockDevice,
    Space,
    existing_directory,
    parse_disk,
    read_disk,
    read_space,
)
from dms_resources.machine.hardware.mounts import Mount, parse_mounts
from dms_resources.machine.hardware.quotas import user_quota
from dms_resources.units import GIB

Build = Callable[[str], Roots]

_SPACE = Space(total=100 * GIB, free=60 * GIB, reserved=5 * GIB)


def _mount(kind: str = "ext4", options: str = "rw", super_options: str = "rw") -> Mount:
    return parse_mounts(f"24 1 8:1 / / {options} - {kind} /dev/sda1 {super_options}")[0]


def test_reserved_blocks_are_not_offered() -> None:
    reading = parse_disk(_SPACE, _mount(), BlockDevice(), None)
    assert reading.value.size == 95 * GIB
    assert reading.limits == ("95 GiB of 100 GiB disk: 5 GiB are reserved blocks",)


def test_a_quota_below_the_file_system_counts() -> None:
    assert parse_disk(_SPACE, _mount(), BlockDevice(), 10 * GIB).value.size == 10 * GIB
    assert (
        parse_disk(_SPACE, _mount(), BlockDevice(), 10 * GIB).limits[-1] == "10 GiB of 100 GiB disk: quota of this user"
    )
    assert parse_disk(_SPACE, _mount(), BlockDevice(), 200 * GIB).value.size == 95 * GIB


@pytest.mark.parametrize(
    ("space", "mount"),
    [
        (_SPACE._replace(read_only=True), _mount()),
        (_SPACE, _mount(options="ro,relatime")),
        (_SPACE, _mount(super_options="ro")),
    ],
)
def test_nothing_is_offered_on_a_read_only_file_system(space: Space, mount: Mount) -> None:
    reading = parse_disk(space, mount, BlockDevice(), None)
    assert reading.value.size == 0
    assert reading.limits[-1] == "0 B of 100 GiB disk: the file system is read-only"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "fuse.sshfs", "ceph", "virtiofs"])
def test_network_file_systems_are_recognised(kind: str) -> None:
    disk = parse_disk(_SPACE, _mount(kind), BlockDevice(rotational="0"), None).value
    assert (disk.type, disk.interface) == ("network", kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "fuse.ntfs-3g", "fuseblk", "nfsd-like"])
def test_local_file_systems_are_not_taken_for_network_ones(kind: str) -> None:
    assert parse_disk(_SPACE, _mount(kind), BlockDevice(), None).value.type != "network"


def test_a_file_system_in_memory_is_said_to_be_one() -> None:
    limits = parse_disk(_SPACE, _mount("tmpfs"), BlockDevice(), None).limits
    assert "95 GiB of disk: the file system (tmpfs) takes its space from RAM" in limits


@pytest.mark.parametrize(
    ("path", "rotational", "kind", "interface"),
    [
        ("/sys/devices/pci0/nvme/nvme0/nvme0n1", "0", "NVMe", "NVMe"),
        ("/sys/devices/pci0/ata1/host0/block/sda", "0", "SSD", "SATA"),
        ("/sys/devices/pci0/ata1/host0/block/sda", "1", "HDD", "SATA"),
        ("/sys/devices/pci0/virtio0/block/vda", "1", "", "virtio"),
        ("/sys/devices/pci0/usb2/2-1/block/sdb", "1", "", "USB"),
        ("/sys/devices/vbd-768/block/xvda", "0", "", "Xen"),
        ("/sys/devices/platform/host2/session1/block/sdc", "0", "SSD", "iSCSI"),
        ("", None, "", ""),
    ],
)
def test_device_types(path: str, rotational: str | None, kind: str, interface: str) -> None:
    disk = parse_disk(_SPACE, _mount(), BlockDevice(path, rotational), None).value
    assert (disk.type, disk.interface) == (kind, interface)


def test_libatas_name_is_no_vendor() -> None:
    assert parse_disk(_SPACE, _mount(), BlockDevice(vendor="ATA"), None).value.vendor == ""
    assert parse_disk(_SPACE, _mount(), BlockDevice(vendor="SAMSUNG"), None).value.vendor == "SAMSUNG"


def test_a_quota_is_only_asked_for_where_the_file_system_has_one(build_machine: Build) -> None:
    asked: list[str] = []

    def quota(source: str) -> int | None:
        asked.append(source)
        return GIB

    def space(_: Path) -> Space:
        return _SPACE

    roots = build_machine("systemd_slice")
    assert read_disk(Path("/"), roots, space=space, quota=quota).value.size == GIB
    assert asked == ["/dev/sda2"]
    (roots.proc / "self" / "mountinfo").write_text("27 1 8:2 / / rw - ext4 /dev/sda2 rw,noquota\n")
    assert read_disk(Path("/"), roots, space=space, quota=quota).value.size == 95 * GIB


def test_a_file_system_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    def space(_: Path) -> Space:
        raise OSError(5, "Input/output error")

    reading = read_disk(tmp_path, HOST, space=space)
    assert reading.value.size == 0
    assert reading.problems == (f"the disk of {tmp_path} cannot be read: Input/output error",)


def test_a_work_directory_that_is_not_there_yet_is_on_its_parents_file_system(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert existing_directory(tmp_path / "link" / "not" / "yet") == tmp_path


def test_space_of_a_real_file_system_adds_up(tmp_path: Path) -> None:
    space = read_space(tmp_path)
    assert 0 < space.free + space.reserved <= space.total


def test_the_quota_of_a_device_without_one_is_unknown() -> None:
    assert user_quota("tmpfs") is None
    assert user_quota("/dev/null") is None
    assert user_quota("/dev/\0") is None
    assert user_quota(os.devnull + "-not-there") is None


class _Library:
    """A C library whose quotactl(2) answers as it is told."""

    def __init__(self, hard: int, soft: int, valid: int = 1, result: int = 0) -> None:
        self.answer = (hard, soft, valid, result)
        self.asked: list[tuple[int, bytes]] = []

    def quotactl(self, command: ctypes.c_int, device: bytes, user: int, found: Any) -> int:
        self.asked.append((command.value & 0xFFFFFFFF, device))
        hard, soft, valid, result = self.answer
        found._obj.hard_limit, found._obj.soft_limit, found._obj.valid = hard, soft, valid
        return result


@pytest.mark.parametrize(
    ("library", "size"),
    [
        (_Library(hard=2048, soft=1024), 2**20),
        (_Library(hard=2048, soft=0), 2**21),
        (_Library(hard=0, soft=0), None),
        (_Library(hard=2048, soft=0, valid=0), None),
        (_Library(hard=2048, soft=0, result=-1), None),
    ],
)
def test_the_lower_of_a_users_limits_counts(
    monkeypatch: pytest.MonkeyPatch, library: _Library, size: int | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    assert user_quota("/dev/sda2") == size
    # QCMD(Q_GETQUOTA, USRQUOTA)
    assert library.asked == [(0x80000700, b"/dev/sda2")]
