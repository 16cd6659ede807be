"""The schema of the ledger's file, and the upgrade of older files.

A schema is the SQL of its newest version and, for older files, one script from each version to the next. An upgrade is
one transaction, so that a file is never between two versions.
"""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from importlib import resources
from typing import Final

from msgspec import Struct

__all__ = ["APPLICATION_ID", "Schema", "ledger_schema"]

APPLICATION_ID: Final = 0x444D5352  # "DMSR"

# Version 2 stores the price of a lease and the accounts to which it is charged within its body. The file's schema does
# not change, but a program of version 1 must not open the file, because its next renewal would lose these fields.
# Version 3 adds the limits of a lease in the same way: its notice, its longest time and its grace. Version 4 adds the
# names of the ensemble and the node for which a lease was requested, its job and the state `ending`. It gives each
# entry of the history the holder and the fencing number of its lease. The text of that table in `schema.sql` is what
# SQLite makes of this script.
_MIGRATIONS: Final = (
    "",
    "",
    """
    ALTER TABLE history ADD COLUMN holder TEXT NOT NULL DEFAULT '';
    ALTER TABLE history ADD COLUMN fence INTEGER NOT NULL DEFAULT 0;
    DROP INDEX history_at;
    """,
)


class Schema(Struct, frozen=True, kw_only=True):
    """`sql` creates an empty ledger of the newest version. `migrations[n]` upgrades version n + 1 to version n + 2.

    An upgraded file has to be the same as a new one: a change of `sql` needs a migration.
    """

    sql: str
    migrations: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """The version that `sql` creates. The first version is 1."""
        return len(self.migrations) + 1

    def create(self, db: sqlite3.Connection) -> None:
        """Create an empty ledger in an empty database, in one transaction. Raises `sqlite3.Error`."""
        self._run(db, f"{self.sql}\nPRAGMA application_id = {APPLICATION_ID};")

    def upgrade(self, db: sqlite3.Connection, version: int) -> None:
        """Apply every migration after `version` in order, in one transaction. Raises `sqlite3.Error`."""
        self._run(db, "\n".join(self.migrations[version - 1 :]))

    def _run(self, db: sqlite3.Connection, script: str) -> None:
        try:
            db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {self.version};\nCOMMIT;")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


@lru_cache(maxsize=1)
def ledger_schema() -> Schema:
    """The schema that this program writes."""
    return Schema(sql=resources.files(__package__).joinpath("schema.sql").read_text(), migrations=_MIGRATIONS)
