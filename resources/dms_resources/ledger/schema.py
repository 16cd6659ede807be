"""The schema of the ledger's file, and how a file of an older version becomes one of this version.

A schema is the SQL of its newest version and, for files written before, one script from each version to the next. An
upgrade is one transaction, so that a file is never between two versions.
"""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from importlib import resources
from typing import Final

from msgspec import Struct

__all__ = ["APPLICATION_ID", "Schema", "ledger_schema"]

APPLICATION_ID: Final = 0x444D5352  # "DMSR"

# Version 2 keeps with a lease its price and the accounts that it is charged to, within its body: nothing to change in
# a file, but a program of version 1 would forget them with the next renewal, so it must not open it. Version 3 does the
# same with the limits of a lease: its notice, its longest time and its grace.
_MIGRATIONS: Final = ("", "")


class Schema(Struct, frozen=True, kw_only=True):
    """`sql` makes an empty ledger of the newest version; `migrations[n]` makes version n + 2 of version n + 1.

    An upgraded file has to be the same as a fresh one: a change of `sql` needs a migration.
    """

    sql: str
    migrations: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """The version that `sql` makes; the first is 1."""
        return len(self.migrations) + 1

    def create(self, db: sqlite3.Connection) -> None:
        """Makes an empty ledger in an empty database, in one transaction. Raises `sqlite3.Error`."""
        self._run(db, f"{self.sql}\nPRAGMA application_id = {APPLICATION_ID};")

    def upgrade(self, db: sqlite3.Connection, version: int) -> None:
        """Applies every migration after `version` in order, in one transaction. Raises `sqlite3.Error`."""
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
