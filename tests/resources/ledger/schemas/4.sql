-- The ledger, version 4. `body` is the JSON of the lease as the package writes it; the columns are what is searched.
-- `checksum` is the CRC-32 of the row's other values: SQLite's own check does not see a flipped bit inside of a value.
CREATE TABLE ledger (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    offer TEXT NOT NULL,          -- what the owner onboarded, and whether the machine drains
    fence INTEGER NOT NULL,       -- the highest fencing number given out
    checksum INTEGER NOT NULL
) STRICT;

CREATE TABLE leases (
    lease_id TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    due REAL,                     -- end on the steady clock of boot_id, NULL for an allocation
    boot_id TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE ended (
    lease_id TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    ended REAL NOT NULL,
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE history (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    lease_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL
, holder TEXT NOT NULL DEFAULT '', fence INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO ledger VALUES (1, '{}', 0, 1241304697);
