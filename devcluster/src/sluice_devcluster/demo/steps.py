"""The story's steps as they are shown and timed: what runs, what it says meanwhile, how it ended."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


class StoryError(Exception):
    """The story took a turn it must not take; the message says what was expected and what was seen."""


@dataclass
class Step:
    """One line of the screen."""

    title: str
    started: float
    ended: float | None = None
    detail: str = ""
    failed: bool = False

    def seconds(self, now: float) -> float:
        """How long the step has taken so far, or took."""
        return (self.ended if self.ended is not None else now) - self.started


@dataclass
class Screen:
    """Shows steps as they run: a live table on a terminal, a line a change elsewhere."""

    console: Console
    clock: Callable[[], float] = time.monotonic
    steps: list[Step] = field(default_factory=list)
    _live: Live | None = None
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Keep the table on screen while the block runs."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, refresh_per_second=4, get_renderable=self._table) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Run one step; the value given is a function that says how it is going."""
        step = Step(title, self.clock())
        with self._lock:
            self.steps.append(step)
        self._line(f"· {title}")

        def say(detail: str) -> None:
            if detail != step.detail:
                step.detail = detail
                self._line(f"  {step.seconds(self.clock()):4.0f} s  {detail}")

        try:
            yield say
        except BaseException:
            step.failed = True
            raise
        finally:
            step.ended = self.clock()
            mark = "✗" if step.failed else "✓"
            self._line(f"{mark} {title} ({step.seconds(step.ended):.0f} s) {step.detail}")

    def _line(self, text: str) -> None:
        if self._live is None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True)
        now = self.clock()
        for step in self.steps:
            mark, style = ("✗", "red") if step.failed else ("✓", "green") if step.ended is not None else ("▸", "cyan")
            table.add_row(
                Text(mark, style=style), step.title, f"{step.seconds(now):.0f} s", Text(step.detail, style="dim")
            )
        return table
