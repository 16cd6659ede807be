"""Text from elsewhere, made safe to print."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """The text in one line, without what would steer a terminal: much of it comes from other peers."""
    return "".join(character if character.isprintable() else " " for character in text)
