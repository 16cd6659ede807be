"""docs/host.md names every bound with its default."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from dms_host import HostLimits, RelayLimits
from dms_peer.connections import ConnectionLimits

PAGE = (Path(__file__).parents[2] / "docs" / "host.md").read_text()


@pytest.mark.parametrize("limits", [HostLimits, RelayLimits, ConnectionLimits])
def test_every_bound_is_on_the_page(limits: type) -> None:
    table = PAGE.partition(f"| `{limits.__name__}` |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert [(name.strip(), value.strip()) for name, value in rows] == [
        (f"`{field.name}`", f"{field.default:,}") for field in fields(limits)
    ]
