"""The home directory of a peer: its key, its ledger, its socket, and the description of its machine.

Rules:
1. The directory is created with mode 0700. If every user can write to it, it is refused. Key, ledger and socket have
   mode 0600 whatever the mode of the directory is.
2. `--machine FILE` is remembered: a copy is kept as `machine.json` and used by every later command, until another file
   is given or `--machine measured` returns to the hardware.
3. Only the process with the ledger remembers it, so that no command changes the machine under a running peer.
4. A damaged file of what is remembered is renamed, and this is logged. It never prevents the start.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dms_resources.private_files import write_private

from ..errors import PeerError
from .state_files import read_state, set_aside

if TYPE_CHECKING:
    from dms_resources.components import MachineResources

__all__ = ["HOME_VARIABLE", "MEASURED", "PATIENCE", "RETRY_INTERVAL", "Home", "default_home", "home_at"]

HOME_VARIABLE: Final = "DMS_HOME"
MEASURED: Final = "measured"
_LARGEST_LISTEN: Final = 64 * 1024
_LARGEST_MACHINE: Final = 16 * 1024 * 1024
# Seconds that a command waits until another command, or a peer that is starting, releases the ledger.
PATIENCE: Final = 3.0
RETRY_INTERVAL: Final = 0.05


def default_home() -> Path:
    """The home directory that `DMS_HOME` names, otherwise the user's data directory for dms-peer."""
    if named := os.environ.get(HOME_VARIABLE):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_data_dir("dms-peer"))


class Home(Struct, frozen=True):
    """The files of one peer. `patience` is how long (seconds) a command waits for its ledger."""

    path: Path
    patience: float = PATIENCE

    @property
    def key_path(self) -> Path:
        """The peer's private key."""
        return self.path / "key"

    @property
    def swarm_key_path(self) -> Path:
        """The key of the private network of the peer, if it is in one."""
        return self.path / "swarm.key"

    @property
    def ledger_path(self) -> Path:
        """The ledger: the offer and the leases."""
        return self.path / "ledger.db"

    @property
    def socket_path(self) -> Path:
        """The Unix socket on which a running peer serves its owner's commands."""
        return self.path / "peer.sock"

    @property
    def jobs_path(self) -> Path:
        """The folder of the jobs on this machine's leases: their documents, how far they are, their output."""
        return self.path / "jobs"

    @property
    def executors_path(self) -> Path:
        """The folder of the files of executors."""
        return self.path / "executors"

    @property
    def start_path(self) -> Path:
        """The file whose lock a peer holds while it starts."""
        return self.path / "starting"

    @property
    def machine_path(self) -> Path:
        """The description of the machine that replaces the measured hardware, if one is remembered."""
        return self.path / "machine.json"

    @property
    def listen_path(self) -> Path:
        """The addresses of the last run, if the system chose them."""
        return self.path / "listen"

    @property
    def peers_path(self) -> Path:
        """The table of known peers."""
        return self.path / "peers.json"

    @property
    def revocations_path(self) -> Path:
        """The list of revoked grants."""
        return self.path / "revoked"

    def prepare(self) -> None:
        """Create the directory if it is missing. Blocks on disk.

        Raises PeerError `bad_home` if it cannot be created or read, or if every user can write to it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.listdir(self.path)
            mode = stat.S_IMODE(self.path.stat().st_mode)
        except OSError as error:
            raise PeerError(
                f"{self.path} cannot be used as home directory: {error.strerror}",
                code="bad_home",
                hint="choose another --home, or give yourself permission to write there",
            ) from error
        if mode & stat.S_IWOTH:
            raise PeerError(
                f"every user can write to the home directory {self.path} (mode {mode:04o})",
                code="bad_home",
                hint=f"choose another --home, or: chmod 700 {self.path}",
            )

    def machine(self, choice: str | None) -> MachineResources:
        """The machine that `choice` (`--machine`) or this home describes, otherwise the measured hardware.

        Raises MachineFileError for a file that `choice` names. Blocks, for seconds if a GPU driver is slow.
        """
        # Commands that query a running peer do not need these, and must start fast.
        from dms_resources.errors import MachineFileError
        from dms_resources.machine.file import read_machine_file
        from dms_resources.machine.hardware import measure_machine

        if choice is not None and choice != MEASURED:
            return read_machine_file(Path(choice))
        if choice is None:
            try:
                read_state(self.machine_path, _LARGEST_MACHINE)
                return read_machine_file(self.machine_path)
            except FileNotFoundError:
                pass
            except OSError as error:
                set_aside(self.machine_path, error)
            except MachineFileError as error:
                set_aside(self.machine_path, error.message)
        return measure_machine(self.path)

    def remember_machine(self, choice: str | None, machine: MachineResources) -> None:
        """Remember the choice for later commands. Only the process with the ledger may call it. Blocks on disk."""
        from dms_resources.machine.file import write_machine_file

        if choice == MEASURED:
            self.machine_path.unlink(missing_ok=True)
        elif choice is not None:
            write_machine_file(self.machine_path, machine)

    def listen_addresses(self, check: Callable[[str], object]) -> list[str]:
        """The addresses of the last run. `check` raises PeerError for an invalid one. Blocks on disk."""
        try:
            addresses = read_state(self.listen_path, _LARGEST_LISTEN).decode().split()
            for address in addresses:
                check(address)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, PeerError) as error:
            set_aside(self.listen_path, error)
            return []
        return addresses

    def remember_listen_addresses(self, addresses: list[str]) -> None:
        """Remember the addresses for the next start. A failure is logged. Blocks on disk."""
        try:
            write_private(self.listen_path, ("\n".join(addresses) + "\n").encode())
        except OSError as error:
            # Every command loads this module, and few have anything to log.
            import logging

            logging.getLogger(__name__).warning("cannot write %s: %s", self.listen_path, error.strerror)


def home_at(path: str | Path | None) -> Home:
    """The home at a path, or the default one. Raises PeerError `bad_home` if the path is not UTF-8."""
    home = Home(Path(path) if path is not None else default_home(), PATIENCE)
    try:
        str(home.path).encode()
    except UnicodeEncodeError:
        # SQLite, JSON and terminals all need text, and each would fail in a different way.
        raise PeerError(
            f"the path of the home directory is not UTF-8: {str(home.path)!a}",
            code="bad_home",
            hint="choose another --home, and use a UTF-8 locale, such as LC_ALL=C.UTF-8",
        ) from None
    return home
