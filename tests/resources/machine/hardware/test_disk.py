"""How much of a file system may be offered, and the device under it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dms_resources.machine.hardware import HOST, Roots, measure_machine
from dms_resources.machine.hardware.disk import (
    BlockDevice,
    Space,
    existing_directory,
    is_in_memory,
    parse_disk,
    read_disk,
    read_space,
)
from dms_resources.machine.hardware.gpu.process import environment
from dms_resources.machine.hardware.mounts import Mount, parse_mounts
from dms_resources.machine.hardware.quotas import Quota, read_quota, subvolume_quota
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
    reading = parse_disk(_SPACE, _mount(), BlockDevice(), Quota(10 * GIB, "this user"))
    assert reading.value.size == 10 * GIB
    assert reading.limits[-1] == "10 GiB of 100 GiB disk: quota of this user"
    assert parse_disk(_SPACE, _mount(), BlockDevice(), Quota(200 * GIB, "this user")).value.size == 95 * GIB


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


def test_the_quota_is_that_of_the_folders_mount(build_machine: Build) -> None:
    asked: list[tuple[str, Path]] = []

    def quota(mount: Mount, directory: Path, roots: Roots) -> Quota | None:
        asked.append((mount.source, directory))
        return Quota(GIB, "project 7")

    reading = read_disk(Path("/"), build_machine("systemd_slice"), space=lambda _: _SPACE, quota=quota)
    assert reading.value.size == GIB
    assert reading.limits[-1] == "1 GiB of 100 GiB disk: quota of project 7"
    assert asked == [("/dev/sda2", Path("/"))]


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


def _on(source: str, kind: str = "ext4", options: str = "rw") -> Mount:
    return Mount("8:2", "/", "/", frozenset(), kind, source, frozenset(options.split(",")))


@pytest.mark.parametrize("source", ["tmpfs", "/dev/null", "/dev/\0", "/dev/null-not-there"])
def test_the_quota_of_a_device_without_one_is_unknown(source: str, tmp_path: Path) -> None:
    assert read_quota(_on(source), tmp_path, HOST) is None
    assert read_quota(_on(source), tmp_path / "not-there", HOST) is None


class _Library:
    """A C library whose quotactl(2) answers as told, for quotas of one kind."""

    def __init__(self, hard: int, soft: int, valid: int = 1, result: int = 0, kind: int = 0) -> None:
        self.answer = (hard, soft, valid, result)
        self.kind = kind
        self.asked: list[tuple[int, bytes, int]] = []

    def quotactl(self, command: ctypes.c_int, device: bytes, number: int, found: Any) -> int:
        self.asked.append((command.value & 0xFFFFFFFF, device, number))
        hard, soft, valid, result = self.answer
        found._obj.hard_limit, found._obj.soft_limit, found._obj.valid = hard, soft, valid
        return result if command.value & 0xFF == self.kind else -1


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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: _Library, size: int | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    assert read_quota(_on("/dev/sda2"), tmp_path, HOST) == (None if size is None else Quota(size, "this user"))
    # QCMD(Q_GETQUOTA, USRQUOTA), then GRPQUOTA
    assert library.asked[:2] == [
        (0x80000700, b"/dev/sda2", os.getuid()),
        (0x80000701, b"/dev/sda2", os.stat(tmp_path).st_gid if os.stat(tmp_path).st_mode & 0o2000 else os.getegid()),
    ]


def test_the_quota_of_the_group_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: _Library(hard=4, soft=0, kind=1))
    assert read_quota(_on("/dev/sda2"), tmp_path, HOST) == Quota(4096, "this group")


def test_the_quota_of_the_project_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = _Library(hard=4, soft=0, kind=2)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)

    def answer(file: int, request: int, argument: bytearray, change: bool) -> int:
        argument[:] = struct.pack("=IIIII8x", 0, 0, 0, 17, 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", answer)
    assert read_quota(_on("/dev/sda2"), tmp_path, HOST) == Quota(4096, "project 17")
    assert library.asked[-1] == (0x80000702, b"/dev/sda2", 17)


_BTRFS = "/sys/fs/btrfs/6f0b3c2e-1111-2222-3333-444455556666"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"qgroups/0_257/max_referenced": 209715200}, Quota(209715200, "the btrfs subvolume")),
        ({"qgroups/0_257/max_referenced": 0, "qgroups/0_257/max_exclusive": 4096}, Quota(4096, "the btrfs subvolume")),
        ({"qgroups/0_257/max_referenced": 0, "qgroups/0_257/max_exclusive": 0}, None),
        ({"qgroups/0_5/max_referenced": 1}, None),
        ({"qgroups/0_257/max_referenced": "x"}, None),
        ({"label": ""}, None),
    ],
)
def test_a_quota_group_of_btrfs_limits_its_subvolume(
    build_machine: Build, files: dict[str, object], quota: Quota | None
) -> None:
    text = "".join(f"== {_BTRFS}/{name}\n{value}\n" for name, value in files.items())
    roots = build_machine(text + f"== {_BTRFS}/devices/sdb1/size\n1\n")
    mount = _on("/dev/sdb1", "btrfs", "rw,subvolid=257,subvol=/c1")
    assert subvolume_quota(mount, Path("/"), roots) == quota
    assert subvolume_quota(_on("/dev/sdc1", "btrfs", "rw,subvolid=257"), Path("/"), roots) is None
    assert read_quota(mount, Path("/"), roots) == quota


@pytest.mark.parametrize(
    ("mounts", "files", "in_memory"),
    [
        ("24 1 8:1 / / rw - ext4 /dev/sda1 rw", "", False),
        ("24 1 0:5 / / rw - tmpfs tmpfs rw", "", True),
        ("24 1 0:5 / / rw - rootfs rootfs rw", "", True),
        ("24 1 252:0 / / rw - ext4 /dev/zram0 rw", "", True),
        ("24 1 1:0 / / rw - ext2 /dev/ram0 rw", "", True),
        ("24 1 0:5 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/run/u,workdir=/run/w\n"
         "25 24 0:6 / /run rw - tmpfs tmpfs rw", "", True),
        ("24 1 0:5 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/var/u\n25 24 8:1 / /var rw - ext4 /dev/sda1 rw",
         "", False),
        ("24 1 7:0 / / rw - ext4 /dev/loop0 rw\n25 24 0:6 / /run rw - tmpfs tmpfs rw",
         "== /sys/block/loop0/loop/backing_file\n/run/disk.img\n", True),
        ("24 1 7:0 / / rw - ext4 /dev/loop0 rw\n25 24 8:1 / /data rw - ext4 /dev/sda1 rw",
         "== /sys/block/loop0/loop/backing_file\n/data/disk.img\n", False),
        # A loop that is never resolved.
        ("24 1 7:0 / / rw - ext4 /dev/loop0 rw", "== /sys/block/loop0/loop/backing_file\n/disk.img\n", False),
        ("", "", False),
    ],
)  # fmt: skip
def test_a_disk_in_memory_and_the_memory_are_one_pool(
    build_machine: Build, mounts: str, files: str, in_memory: bool
) -> None:
    roots = build_machine(f"== /proc/meminfo\nMemTotal: 8388608 kB\n== /proc/self/mountinfo\n{mounts}\n{files}")
    assert is_in_memory(Path("/"), roots) is in_memory
    machine = measure_machine(Path("/"), roots, environment={})
    if in_memory:
        assert machine.ram.size + machine.disk.size <= 8 * GIB
        assert machine.disk.size > 0
        assert machine.limits[0].endswith("of disk: the disk is in memory")
    else:
        assert machine.ram.size == 8 * GIB


@pytest.mark.parametrize(
    ("answer", "total", "free"),
    [
        ({"f_frsize": 0, "f_bsize": 4096}, 4096000, 4096000),
        ({"f_frsize": 2**24, "f_blocks": 2**44, "f_bavail": 2**44, "f_bfree": 2**44}, 2**63 - 1, 2**63 - 1),
        # A file system without free file entries accepts no new file.
        ({"f_files": 10, "f_favail": 0}, 4096000, 0),
        ({"f_files": 0, "f_favail": 0}, 4096000, 4096000),
    ],
)
def test_odd_answers_of_a_file_system(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, int], total: int, free: int
) -> None:
    plain = {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1000, "f_bfree": 1000, "f_bavail": 1000}
    found = SimpleNamespace(**{**plain, "f_files": 9, "f_favail": 9, "f_flag": 0, **answer})
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert read_space(Path("/"))[:2] == (total, free)


def test_a_file_system_that_is_not_btrfs_answers_no_subvolume(tmp_path: Path) -> None:
    assert read_quota(_on("/dev/sda2", "btrfs"), tmp_path, HOST) is None


def _sizes(tmp_path: Path, tools: tuple[str, ...], prepare: str, *folders: str) -> list[int]:
    """The disk of each folder below `mount`, on a file system in a file; skips where that cannot be made."""
    if os.getuid() != 0 or not all(map(shutil.which, ("unshare", *tools))):
        pytest.skip(f"needs root and {', '.join(tools)}")
    measure = (
        "import sys; from pathlib import Path; from dms_resources.machine.hardware import HOST;"
        "from dms_resources.machine.hardware.disk import read_disk;"
        "[print(read_disk(Path(one), HOST).value.size) for one in sys.argv[1:]]"
    )
    script = f"""
        cd {tmp_path}
        bash -ec '{prepare}' >&2 || exit 77
        trap 'umount mount' EXIT
        {sys.executable} -c '{measure}' {" ".join(f"mount/{name}" for name in folders)}
    """
    command = ["unshare", "-m", "bash", "-c", script]
    found = subprocess.run(command, env={**os.environ, **environment()}, capture_output=True, timeout=60)
    if found.returncode == 77:
        pytest.skip(f"this kernel cannot: {found.stderr.decode()[-200:]}")
    assert found.returncode == 0, found.stderr
    return [int(size) for size in found.stdout.split()]


def test_a_real_quota_group_of_btrfs_is_read(tmp_path: Path) -> None:
    """Needs root, btrfs-progs and a kernel with btrfs. The file system is in a file."""
    prepare = """
        truncate -s 256M image; mkfs.btrfs -q image; mkdir mount; mount -o loop image mount
        btrfs subvolume create mount/one; btrfs quota enable mount; btrfs qgroup limit 20M mount/one
        mkdir mount/one/home
    """
    limited, whole = _sizes(tmp_path, ("btrfs", "mkfs.btrfs"), prepare, "one/home", "")
    assert limited == 20 * 2**20
    assert whole > limited


def test_real_quotas_of_groups_and_projects_are_read(tmp_path: Path) -> None:
    """Needs root, the quota tools and a kernel with quotas of ext4; the file system lies in a file."""
    prepare = """
        truncate -s 64M image
        mkfs.ext4 -q -O quota,project -E quotatype=usrquota:grpquota:prjquota image
        mkdir mount; mount -o loop,usrquota,grpquota,prjquota image mount; mkdir mount/group mount/project
        setquota -g 4321 0 20480 0 0 mount; chgrp 4321 mount/group; chmod g+s mount/group
        setquota -P 17 0 10240 0 0 mount; chattr +P -p 17 mount/project
    """
    tools = ("mkfs.ext4", "setquota", "chattr")
    group, project, whole = _sizes(tmp_path, tools, prepare, "group", "project", "")
    assert (group, project) == (20480 * 1024, 10240 * 1024)
    assert whole > group
