"""Tables of texts, and their Markdown, which also lines up in a terminal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """A table of texts, ready for any format.

    Attributes:
        title: heading.
        note: what the numbers are; empty if the title says it.
        header: column names, the first over the row names.
        rows: cells; the first of each row is its name.
        numeric: align all but the first column to the right.
        empty: what to say if there are no rows.
        bars: per row, the share of a bar behind its first number, if the format has bars; empty for none.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True
    empty: str = "None."
    bars: tuple[float, ...] = ()


def markdown_table(table: Table) -> str:
    """A GitHub table whose columns also line up in a terminal; numbers to the right."""
    lines = [[markdown_text(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def padded(row: Sequence[str]) -> str:
        right = table.numeric
        return line(
            cell.rjust(width) if right and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )

    rule = line(
        "-" * (width - 1) + ":" if table.numeric and column else "-" * width for column, width in enumerate(widths)
    )
    return "\n".join([padded(lines[0]), rule, *map(padded, lines[1:])])


def markdown_page(title: str, intro: str, tables: Iterable[Table]) -> str:
    """A page of tables, each under its heading."""
    parts = [f"# {markdown_text(title)}", markdown_text(intro)]
    for table in tables:
        parts += [f"## {table.title}", markdown_text(table.note), markdown_table(table) if table.rows else table.empty]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_text(text: str) -> str:
    """Escape text from outside: one line of Markdown without markup."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
