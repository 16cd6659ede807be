"""The tables of a run: for a terminal, and for the page in docs, which is rewritten between its markers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aims import aims
from figures import OURS_TO_OURS, Run, distinct
from measurements import PARTS
from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """A heading and rows of text. The first row has the names of the columns."""

    title: str
    rows: list[list[str]]


def tables(run: Run) -> Iterator[Table]:
    """One table for each part, and one for the aims."""
    for part in distinct(figure.part for figure in run.figures):
        yield part_table(run, part)
    reached = [[f"({aim.part})", aim.aim, aim.reached, "met" if aim.met else "missed"] for aim in aims(run)]
    if reached:
        yield Table("Aims", [["", "aim", "reached", ""], *reached])


def part_table(run: Run, part: str) -> Table:
    """The medians of a part, a column for each series, and the ratios of the first to each of the others."""
    figures = run.of_part(part)
    series, unit = distinct(figure.series for figure in figures), figures[0].unit
    ours, *others = series
    # Results of our own requester are not compared with the others.
    others = [one for one in others if one != OURS_TO_OURS]
    head = [unit, *series, *(f"{ours} / {other}" for other in others)]
    rows = []
    for what in distinct(figure.what for figure in figures):
        medians = [amount(run, part, what, one) for one in series]
        ratios = [run.ratio((part, what, ours), (part, what, other)) for other in others]
        rows.append([what, *medians, *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)])
    return Table(f"({part}) {PARTS[part]}", [head, *rows])


def amount(run: Run, part: str, what: str, series: str) -> str:
    """A median with three significant digits."""
    figure = run.figure(part, what, series)
    if figure is None:
        return ""
    return f"{figure.median:,.0f}" if figure.median >= 100 else f"{figure.median:.3g}"


def description(run: Run) -> str:
    """What was measured, on which machine, with which versions."""
    software = ", ".join(f"{name} {version}" for name, version in run.software.items())
    return f"Version {run.version}, {run.date}, {run.machine}; {software}; medians of {run.rounds} rounds."


def show_run(run: Run) -> None:
    """Print the tables."""
    console = Console()
    console.print(description(run))
    for table in tables(run):
        shown = RichTable(title=table.title, title_justify="left")
        for index, name in enumerate(table.rows[0]):
            shown.add_column(name, justify="left" if index == 0 or table.title == "Aims" else "right")
        for row in table.rows[1:]:
            shown.add_row(*row)
        console.print(shown)


def markdown(run: Run) -> str:
    """The tables in the form of the page."""
    lines = [description(run), ""]
    for table in tables(run):
        lines += [f"### {table.title[0].upper()}{table.title[1:]}", ""]
        lines += [*markdown_table(table.rows, "---" if table.title == "Aims" else "---:"), ""]
    return "\n".join(lines)


def line(cells: list[str]) -> str:
    """A row in Markdown."""
    return f"| {' | '.join(cells)} |"


def markdown_table(rows: list[list[str]], align: str = "---:") -> list[str]:
    """The lines of a table; the first row names the columns, the first column is text."""
    head, *others = rows
    return [line(head), line(["---", *[align] * (len(head) - 1)]), *map(line, others)]


def write_page(page: Path, name: str, text: str) -> None:
    """Put a text between the page's markers of that name."""
    begin, end = f"<!-- {name}: written by the run -->\n", f"<!-- end of the {name} -->\n"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no markers for the {name}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
