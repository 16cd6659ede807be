"""dms-peer config show | check | init"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from ...errors import DocumentError, PeerError
from ..options.common import DebugOption, HomeOption, JSONOption, home_at
from ..options.operator import ConfigOption
from ..output import comment, print_json, say

if TYPE_CHECKING:
    from ...config.effective import ConfigValue
    from ...config.sources import ConfigSources, LoadedConfig

__all__ = ["ConfigCheck", "ConfigReport", "EffectiveSetting", "config"]

config = typer.Typer(help="Show, check and create the configuration of `dms-peer run` (docs/configuration.md).")


class EffectiveSetting(Struct, frozen=True, kw_only=True):
    """One setting: its dotted path, its value, and where the value comes from."""

    path: str
    value: ConfigValue
    source: str


class ConfigReport(Struct, frozen=True, kw_only=True):
    """The configuration in force; `file` is None where there is no configuration file."""

    file: str | None
    settings: tuple[EffectiveSetting, ...]


class ConfigCheck(Struct, frozen=True, kw_only=True):
    """A valid configuration; `file` is None where there is no configuration file."""

    file: str | None
    valid: bool = True


@config.command()
def show(
    everything: Annotated[bool, typer.Option("--all", help="Show every limit and share, also the defaults.")] = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the settings that `dms-peer run` would use, and where each value comes from.

    A running peer may have been started with options, or before the file was changed.

    Example: dms-peer config show
    """
    loaded = _sources(home, config).load()
    settings = tuple(_settings(loaded))
    if as_json:
        print_json(ConfigReport(file=str(loaded.file) if loaded.file else None, settings=settings))
    else:
        _show(loaded, settings, everything)


@config.command()
def check(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="The file to check.", show_default="the configuration file in force"),
    ] = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a configuration; exit with 1 and the first error of every section if it is invalid.

    Example: dms-peer config check /etc/dms/peer.yaml
    """
    sources = _sources(home, file)
    errors = sources.problems() or _deeper_problems(sources.load())
    if errors:
        first, *others = errors
        for error in others:
            say(f"dms-peer: {error.message}" + (f"; {error.hint}" if error.hint else ""), sys.stderr)
        raise first
    path = str(sources.path) if sources.path else None
    if as_json:
        print_json(ConfigCheck(file=path))
    else:
        say(f"{path or 'the configuration'} is valid")


@config.command()
def init(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Where to write.", show_default="peer.yaml in the home directory"),
    ] = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a commented example; every line is a comment, so it changes nothing until you edit it.

    Example: dms-peer config init && $EDITOR ~/.local/share/dms-peer/peer.yaml
    """
    from dms_resources.private_files import write_private

    from ...config.example import EXAMPLE
    from ...config.sources import CONFIG_NAME

    path = file
    if path is None:
        where = home_at(home)
        where.prepare()
        path = where.path / CONFIG_NAME
    try:
        write_private(path, EXAMPLE.encode(), replace=False)
    except FileExistsError:
        raise PeerError(
            f"{path} exists", code="config_exists", hint="edit it, or write to another file: dms-peer config init FILE"
        ) from None
    if as_json:
        print_json({"file": str(path)})
    else:
        say(f"wrote {path}")
        comment("next: edit it, then dms-peer config check")


def _sources(home: Path | None, file: Path | None) -> ConfigSources:
    from ...config.sources import ConfigSources

    return ConfigSources(home_at(home).path, os.environ, file)


def _deeper_problems(loaded: LoadedConfig) -> list[DocumentError]:
    """Errors in addresses and lists, which need libp2p to be read."""
    from dms_host import parse_listen_address
    from dms_host.errors import AddressError

    from ...discovery.peering import bootstrap_peers
    from ...home.host import connection_gate

    settings = loaded.config
    checks = (
        ("listen", lambda: [parse_listen_address(one) for one in settings.listen]),
        ("discovery.bootstrap", lambda: bootstrap_peers(settings.discovery.bootstrap)),
        ("network", lambda: connection_gate(settings.network)),
    )
    found = []
    for path, run in checks:
        try:
            run()
        except (AddressError, PeerError) as error:
            position = next((one for name, one in loaded.origins.items() if name.startswith(path)), None)
            where = f"{position}: {path}: " if position else f"{path}: "
            found.append(
                DocumentError(
                    where + error.message,
                    code="bad_config",
                    hint=error.hint,
                    line=position.line if position else 0,
                    column=position.column if position else 0,
                    field=path,
                )
            )
    return found


def _settings(loaded: LoadedConfig) -> list[EffectiveSetting]:
    from ...config.effective import config_values

    rows = []
    for path, value in config_values(loaded.config).items():
        # A value that was written as a list or a mapping has its origin above it.
        origin = loaded.origins.get(path) or next(
            (one for name, one in loaded.origins.items() if name.startswith(f"{path}.")), None
        )
        rows.append(EffectiveSetting(path=path, value=value, source=origin.short if origin else "default"))
    return rows


def _show(loaded: LoadedConfig, settings: tuple[EffectiveSetting, ...], everything: bool) -> None:
    say(f"configuration file: {loaded.file if loaded.file else 'none'}")
    quiet = ("access.shares.", "limits.")
    rows = [
        (one.path, _text(one.value), one.source)
        for one in settings
        if everything or one.source != "default" or not one.path.startswith(quiet)
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    # A long list must not push the sources out of sight.
    value_width = min(widths[1], 40)
    for path, value, source in rows:
        say(f"{path:<{widths[0]}}  {value:<{value_width}}  {source}".rstrip())
    if not everything:
        comment("shares and limits with their default are not shown: dms-peer config show --all")


def _text(value: ConfigValue) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
