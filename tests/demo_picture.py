"""Runs examples/local_market.py and draws what it prints as docs/demo.svg.

python tests/demo_picture.py
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "demo.svg"
# The longest line of the example is an address.
WIDTH = 104


def run_example() -> str:
    """The output of the example on a terminal with colours."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, str(ROOT / "examples" / "local_market.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def picture(output: str) -> str:
    """An SVG image of a terminal that shows this output."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(output.strip("\n")))
    # The same ids in each picture, so that two pictures can be compared.
    svg = console.export_svg(title="python examples/local_market.py", unique_id="demo")
    # A picture in a page must not load fonts.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.write_text(picture(run_example()))
