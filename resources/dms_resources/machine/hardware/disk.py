"""The disk space of the work directory's file system, and the device under it.

The disk is the whole file system without the blocks reserved for its administrator, or a quota if that is smaller. A
file system that is mounted read-only has no disk space.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from ...components import Disk
from ...units import format_size
from .mounts import Mount, find_mount, read_mounts
from .quotas import Quota, read_quota
from .roots import Reading, Roots, bounded, link_name, list_names, read_text

__all__ = ["BlockDevice", "Space", "existing_directory", "is_in_memory", "parse_disk", "read_disk", "read_space"]

_NETWORK: Final = re.compile(
    r"nfs[34]?|cifs|smb3?|smbfs|afs|ceph|lustre|glusterfs|beegfs|gpfs|ocfs2|gfs2|9p|virtiofs|vboxsf|drvfs"
    r"|fuse\.(sshfs|s3fs|gcsfuse|glusterfs|ceph|ceph-fuse|rclone|juicefs|davfs2?|vmhgfs-fuse)"
)
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "rootfs", "devtmpfs"})
_MEMORY_DEVICE: Final = re.compile(r"(zram|ram)[0-9]+(p[0-9]+)?")
_PARTITION: Final = re.compile(r"(?<=[0-9])p[0-9]+$")
_MOST_DEVICES: Final = 64
# Matched against the device's path, which names its bus. The first match is used.
_INTERFACES: Final = (
    ("/nvme", "NVMe"),
    ("/virtio", "virtio"),
    ("/usb", "USB"),
    ("/mmc", "MMC"),
    ("vmbus", "Hyper-V"),
    ("/vbd-", "Xen"),
    ("/session", "iSCSI"),
    ("/ata", "SATA"),
    ("/end_device-", "SAS"),
)
# Virtual disks, memory cards and USB bridges report whether they rotate without knowing it.
_UNTOLD: Final = frozenset({"virtio", "Hyper-V", "Xen", "MMC", "USB"})


class Space(NamedTuple):
    """Bytes of a file system as statvfs(3) counts them. `free` is free for this user, `reserved` for root only."""

    total: int
    free: int
    reserved: int
    read_only: bool = False


class BlockDevice(NamedTuple):
    """The texts that describe a block device. `path` is its place in `/sys/devices`."""

    path: str = ""
    rotational: str | None = None
    model: str | None = None
    vendor: str | None = None


def read_disk(
    work_dir: Path,
    roots: Roots,
    *,
    space: Callable[[Path], Space] | None = None,
    quota: Callable[[Mount, Path, Roots], Quota | None] = read_quota,
) -> Reading[Disk]:
    """Read the file system on which `work_dir` is, or would be. Never raises."""
    directory = existing_directory(work_dir)
    mounts = read_mounts(roots)
    mount = find_mount(mounts, str(directory))
    try:
        found = (space or read_space)(directory)
    except OSError as error:
        return Reading(Disk(size=0), problems=(f"the disk of {directory} cannot be read: {error.strerror}",))
    device = read_block_device(roots, mount) if mount else BlockDevice()
    return parse_disk(found, mount, device, quota(mount, directory, roots) if mount else None)


def is_in_memory(work_dir: Path, roots: Roots) -> bool:
    """Whether the files of `work_dir` are in main memory: on a tmpfs, or on a device or overlay that lies on one."""
    mounts = read_mounts(roots)
    mount = find_mount(mounts, str(existing_directory(work_dir)))
    # Live systems have an overlay on a loop device on a tmpfs, and nothing deeper.
    for _ in range(4):
        if mount is None:
            return False
        devices = _devices_below(mount, roots)
        if mount.kind in _IN_MEMORY or any(map(_MEMORY_DEVICE.fullmatch, devices)):
            return True
        below = _backing_path(mount, devices, roots)
        mount = find_mount(mounts, below) if below else None
    return False


def _devices_below(mount: Mount, roots: Roots) -> tuple[str, ...]:
    """The names of the block device under a mount, and of all devices below its volumes, RAID and encryption."""
    if not mount.source.startswith("/dev/"):
        return ()
    numbered = roots.sys / "dev" / "block" / mount.device
    # A volume's own name is not sysfs's. A device without a link is known by its number only.
    names = [Path(mount.source).name, link_name(numbered), *list_names(numbered / "slaves")]
    seen: list[str] = []
    while names and len(seen) < _MOST_DEVICES:
        name = names.pop()
        if name and name not in seen:
            seen.append(name)
            names += list_names(roots.sys / "class" / "block" / name / "slaves")
    return tuple(seen)


def _backing_path(mount: Mount, devices: tuple[str, ...], roots: Roots) -> str | None:
    """The path on which the files of this mount are stored, if that is another file system."""
    if mount.kind == "overlay":
        options = (option.partition("=") for option in mount.super_options)
        return next((value for name, _, value in options if name == "upperdir"), None)
    # A partition of a loop device is a part of its file.
    loops = [_PARTITION.sub("", name) for name in devices if name.startswith("loop")]
    files = (read_text(roots.sys / "block" / name / "loop" / "backing_file") for name in loops)
    return next(filter(None, files), None)


def existing_directory(work_dir: Path) -> Path:
    """`work_dir` or the nearest existing folder above it. Links are resolved."""
    try:
        directory = work_dir.absolute().resolve()
        while not directory.is_dir() and directory != directory.parent:
            directory = directory.parent
    except (OSError, RuntimeError, ValueError):
        return Path("/")
    return directory


def read_space(directory: Path) -> Space:
    """Query the size and the free space of a file system. Raises `OSError`."""
    found = os.statvfs(directory)
    # Some file systems in user space leave one of the two sizes, or all counts of files, at 0.
    block = found.f_frsize or found.f_bsize
    full = found.f_files > 0 and found.f_favail == 0
    return Space(
        total=bounded(found.f_blocks * block),
        free=0 if full else bounded(found.f_bavail * block),
        reserved=bounded(max(0, found.f_bfree - found.f_bavail) * block),
        read_only=bool(found.f_flag & os.ST_RDONLY),
    )


def read_block_device(roots: Roots, mount: Mount) -> BlockDevice:
    """Collect the texts that describe the whole device under a mount, below partitions and volumes."""
    # Btrfs and overlays have no device number of their own, but the source may name a device.
    names = [roots.sys / "dev" / "block" / mount.device, roots.sys / "class" / "block" / Path(mount.source).name]
    for name in names:
        try:
            found = name.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            continue
        whole = _whole_device(found)
        return BlockDevice(
            path=str(whole),
            rotational=read_text(whole / "queue" / "rotational"),
            model=read_text(whole / "device" / "model"),
            vendor=read_text(whole / "device" / "vendor"),
        )
    return BlockDevice()


def _whole_device(device: Path) -> Path:
    # A volume may lie on a volume. Real machines stack fewer than eight.
    for _ in range(8):
        if (device / "partition").exists():
            device = device.parent
        below = list_names(device / "slaves")
        if not below:
            break
        try:
            device = (device / "slaves" / below[0]).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            break
    return device


def parse_disk(space: Space, mount: Mount | None, device: BlockDevice, quota: Quota | None) -> Reading[Disk]:
    """Make the disk from the texts."""
    limits = []
    size = max(0, space.total - space.reserved)
    total = format_size(space.total)
    if space.reserved:
        limits.append(f"{format_size(size)} of {total} disk: {format_size(space.reserved)} are reserved blocks")
    if quota is not None and quota.size < size:
        size = quota.size
        limits.append(f"{format_size(size)} of {total} disk: quota of {quota.owner}")
    if space.read_only or (mount is not None and mount.read_only):
        size = 0
        limits.append(f"0 B of {total} disk: the file system is read-only")
    return Reading(_describe_device(size, mount, device), tuple(limits))


def _describe_device(size: int, mount: Mount | None, device: BlockDevice) -> Disk:
    if mount is not None and _NETWORK.fullmatch(mount.kind):
        return Disk(size=size, type="network", interface=mount.kind)
    interface = next((name for part, name in _INTERFACES if part in device.path.casefold()), "")
    vendor = device.vendor or ""
    return Disk(
        size=size,
        model=device.model or "",
        # libata writes its own name there, virtio a number.
        vendor="" if vendor == "ATA" or vendor.startswith("0x") else vendor,
        type=_device_type(interface, device.rotational),
        interface=interface,
    )


def _device_type(interface: str, rotational: str | None) -> str:
    if interface == "NVMe":
        return "NVMe"
    if interface in _UNTOLD:
        return ""
    return {"0": "SSD", "1": "HDD"}.get(rotational or "", "")
