"""dms-peer completion"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from ..output import say

__all__ = ["completion"]


class Shell(Enum):
    """The shells whose completion is known."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print the script that completes dms-peer in a shell.

    Example: dms-peer completion bash > ~/.local/share/bash-completion/completions/dms-peer
    """
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="dms-peer", complete_var="_DMS_PEER_COMPLETE", shell=shell.value)
    for line in script.splitlines():
        say(line)
