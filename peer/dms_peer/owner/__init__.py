"""Operations for the owner alone: a running peer serves them on its socket, and commands perform them on the ledger."""
