"""The home directory of a peer: its key, its ledger, its socket, and which machine it describes.

Rules:
1. The directory is made with mode 0700; key, ledger and socket are their owner's only, whatever its mode.
2. `--machine FILE` is remembered: a copy is kept as `machine.json` and used by every later command, until another file
   is given or `--machine measured` goes back to the hardware.
3. It is remembered only by who holds the ledger, so that a home in use is not changed under the running peer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dms_resources.private_files import write_private

from ..errors import PeerError

if TYPE_CHECKING:
    from dms_resources.components import MachineResources

__all__ = ["MEASURED", "PATIENCE", "RETRY_INTERVAL", "Home", "default_home", "home_at"]

MEASURED: Final = "measured"
# Seconds that a command waits for another one, or for a peer that is just starting, to be done with the ledger.
PATIENCE: Final = 3.0
RETRY_INTERVAL: Final = 0.05


def default_home() -> Path:
    """Where a peer lives when nothing else is said: the user's data directory for dms-peer."""
    import platformdirs

    return Path(platformdirs.user_data_dir("dms-peer"))


class Home(Struct, frozen=True):
    """The files of one peer; `patience` is how long (seconds) somebody else may have its ledger."""

    path: Path
    patience: float = PATIENCE

    @property
    def key_path(self) -> Path:
        """The peer's private key."""
        return self.path / "key"

    @property
    def swarm_key_path(self) -> Path:
        """The key of the private network that the peer belongs to, where it belongs to one."""
        return self.path / "swarm.key"

    @property
    def ledger_path(self) -> Path:
        """What is offered and promised."""
        return self.path / "ledger.db"

    @property
    def socket_path(self) -> Path:
        """Where a running peer listens for its owner's commands."""
        return self.path / "peer.sock"

    @property
    def machine_path(self) -> Path:
        """The description of a simulated machine, where one is remembered."""
        return self.path / "machine.json"

    @property
    def listen_path(self) -> Path:
        """The addresses on which the peer listened last, where the system chose them."""
        return self.path / "listen"

    @property
    def peers_path(self) -> Path:
        """The peers that answered before."""
        return self.path / "peers.json"

    @property
    def revocations_path(self) -> Path:
        """The grants that do not count any more."""
        return self.path / "revoked"

    def prepare(self) -> None:
        """Makes the directory. Raises PeerError `bad_home` when it cannot be made or entered. Blocks on disk."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.listdir(self.path)
        except OSError as error:
            raise PeerError(
                f"{self.path} cannot be used as home directory: {error.strerror}",
                code="bad_home",
                hint="choose another --home, or give yourself permission to write there",
            ) from error

    def machine(self, choice: str | None) -> MachineResources:
        """The machine that `choice` (`--machine`) or this home means: described, or measured here and now.

        Raises MachineFileError. Blocks, for seconds where a GPU driver is slow.
        """
        # Of no use to those who ask a running peer, and they must start fast.
        from dms_resources.machine.file import read_machine_file
        from dms_resources.machine.hardware import measure_machine

        if choice is not None and choice != MEASURED:
            return read_machine_file(Path(choice))
        if choice is None and self.machine_path.exists():
            return read_machine_file(self.machine_path)
        return measure_machine(self.path)

    def remember_machine(self, choice: str | None, machine: MachineResources) -> None:
        """Keeps the choice for later commands; only for the process that holds the ledger. Blocks on disk."""
        from dms_resources.machine.file import write_machine_file

        if choice == MEASURED:
            self.machine_path.unlink(missing_ok=True)
        elif choice is not None:
            write_machine_file(self.machine_path, machine)

    def listen_addresses(self) -> list[str]:
        """Where the peer listened last time; none when nothing is remembered. Blocks on disk."""
        try:
            return self.listen_path.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return []

    def remember_listen_addresses(self, addresses: list[str]) -> None:
        """Keeps the addresses for the next start. Blocks on disk."""
        write_private(self.listen_path, ("\n".join(addresses) + "\n").encode())


def home_at(path: str | Path | None) -> Home:
    """The home directory that was named, or the default one."""
    return Home(Path(path) if path is not None else default_home(), PATIENCE)
