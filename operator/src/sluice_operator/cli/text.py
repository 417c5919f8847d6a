"""Lines of text: aligned columns, short digests, sizes and times, written the same way by every command."""

import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.text import Text
from sluice_contracts.base import parse_timestamp

Cell = str | Text
WIDTH = 110
"""Columns of a screen of text: longer messages are folded."""
NARROWEST = 40


def aligned(rows: Iterable[Sequence[Cell]], gap: int = 2, indent: int = 0, width: int | None = None) -> list[Text]:
    """`rows` as lines whose columns begin at equal places; the last column is never padded.

    With `width`, words of a row's last cell that do not fit go on below it, in its column."""
    cells = [[c if isinstance(c, Text) else Text(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells), default=0))]
    lines = []
    for row in cells:
        last = max((i for i, cell in enumerate(row) if len(cell)), default=-1)
        line = Text(" " * indent)
        for i, cell in enumerate(row[:last]):
            line.append_text(cell)
            line.append(" " * (widths[i] - len(cell) + gap))
        column = len(line)
        if last >= 0:
            first, *more = folded(row[last], width - column if width is not None else None)
            lines += [line.append_text(first), *(Text(" " * column).append_text(text) for text in more)]
        else:
            lines.append(Text())
    return lines


def folded(cell: Text, room: int | None) -> list[Text]:
    """The cell in lines of at most `room` characters, but never less than a readable few words a line. A cell that is
    folded keeps its own style alone."""
    if room is None or len(cell) <= max(room, NARROWEST):
        return [cell]
    parts = textwrap.wrap(cell.plain, max(room, NARROWEST), break_long_words=False, break_on_hyphens=False)
    return [Text(part, style=cell.style) for part in parts]


def short(digest: str | None) -> str:
    """A digest or lineage id as people compare it: its first twelve digits."""
    if not digest:
        return "-"
    head, colon, value = digest.rpartition(":")
    return f"{head}{colon}{value[:12]}"


def percent(value: float, signed: bool = False) -> str:
    """A fraction as percent: one decimal."""
    return f"{value * 100:{'+' if signed else ''}.1f} %"


def counted(n: int, one: str, many: str | None = None) -> str:
    """`1 file`, `3 files`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def moment(text: str | None) -> str:
    """A timestamp as `2026-11-21 09:30`."""
    return text[:16].replace("T", " ") if text else "-"


def span(seconds: float) -> str:
    """A length of time in its two largest units: `45 s`, `3 min 10 s`, `2 h 5 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min" if whole % 3600 >= 60 else f"{whole // 3600} h"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def age(text: str | None, now: datetime) -> str:
    """How long ago a timestamp was."""
    if not text:
        return "-"
    return span((now - parse_timestamp(text)).total_seconds())


def now_utc() -> datetime:
    """This moment."""
    return datetime.now(UTC)


def plain(lines: Iterable[Text]) -> str:
    """The lines without colours."""
    return "\n".join(line.plain for line in lines)
