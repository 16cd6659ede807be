"""The names that users import from the fronts of the packages."""

import importlib
import subprocess
import sys

import pytest

FRONTS = ("dms_host", "dms_peer", "dms_resources")


@pytest.mark.parametrize("package", FRONTS)
def test_every_name_of_a_front_can_be_imported_and_is_listed_in_order(package: str) -> None:
    front = importlib.import_module(package)
    assert front.__all__ == sorted(front.__all__, key=lambda name: (not name.isupper(), name))
    for name in front.__all__:
        assert getattr(front, name) is not None


@pytest.mark.parametrize("package", FRONTS)
def test_a_front_loads_no_libp2p(package: str) -> None:
    code = f"import sys, {package}; print('libp2p' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "False"
