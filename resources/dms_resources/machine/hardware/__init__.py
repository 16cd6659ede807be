"""Reads what the machine has, as far as this process may use it.

Everything is read from two roots, `/proc` and `/sys`, which are arguments. Reading and parsing are separate functions.
"""

from __future__ import annotations

from .measurement import measure_machine
from .roots import HOST, Roots

__all__ = ["HOST", "Roots", "measure_machine"]
