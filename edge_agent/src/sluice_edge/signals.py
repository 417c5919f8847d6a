"""Signals: counts of how requests ended, in closed categories, kept on the device.

They leave it only when the owner consents and asks for it, as a batch with a fresh random id. What a batch took is
subtracted at once and the batch kept in outbox/ until it has arrived, so nothing is counted twice or lost on the way.
"""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sluice_contracts.names import Domain, Task
from sluice_contracts.signal import LatencyBucket, Outcome, SignalBatch, SignalCell, TokenBucket

from sluice_edge import durable
from sluice_edge.errors import ConfigurationError, EdgeError, StorageFullError
from sluice_edge.home import Home

REMEMBERED = 1000
"""Answers that feedback can still be given on."""
MAX_CELLS = 1000
MAX_COUNT = 100_000
_BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    lineage TEXT, domain TEXT, task TEXT, outcome TEXT, feedback INTEGER, latency TEXT, tokens TEXT,
    count INTEGER NOT NULL,
    PRIMARY KEY (lineage, domain, task, outcome, feedback, latency, tokens)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL,
    lineage TEXT, domain TEXT, task TEXT, outcome TEXT, feedback INTEGER, latency TEXT, tokens TEXT
);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""
_KEY = "lineage, domain, task, outcome, feedback, latency, tokens"


@dataclass(frozen=True)
class Observation:
    """How one request ended."""

    lineage: str
    domain: Domain
    task: Task
    outcome: Outcome
    seconds: float
    tokens: int


class Signals:
    """The counts. Several processes may use the file."""

    def __init__(self, home: Home) -> None:
        self._file = home.signals
        self._outbox = home.outbox

    def record(self, answer_id: str, seen: Observation) -> None:
        """Count one request, and remember its id (not its content) for feedback. Raises StorageFullError, EdgeError."""
        cell = (
            seen.lineage,
            seen.domain.value,
            seen.task.value,
            seen.outcome.value,
            0,
            latency_bucket(seen.seconds).value,
            token_bucket(seen.tokens).value,
        )
        with self._open() as db:
            _count(db, cell, 1)
            db.execute(f"INSERT OR REPLACE INTO answers (id, {_KEY}) VALUES (?,?,?,?,?,?,?,?)", (answer_id, *cell))
            db.execute("DELETE FROM answers WHERE number <= (SELECT max(number) FROM answers) - ?", (REMEMBERED,))

    def feedback(self, answer_id: str, feedback: int, outcome: Outcome | None) -> None:
        """Move an answer to the cell its user says it belongs in. The last word counts.

        Raises ConfigurationError if the id is not known (any more).
        """
        with self._open() as db:
            row = db.execute(f"SELECT {_KEY} FROM answers WHERE id = ?", (answer_id,)).fetchone()
            if row is None:
                raise ConfigurationError(
                    f"no answer with the id {answer_id!r} is known; feedback is taken on the last {REMEMBERED} answers "
                    "that were not exported yet"
                )
            new = (*row[:3], outcome.value if outcome is not None else row[3], feedback, *row[5:])
            _count(db, row, -1)
            _count(db, new, 1)
            db.execute("UPDATE answers SET outcome = ?, feedback = ? WHERE id = ?", (new[3], new[4], answer_id))

    def cells(self) -> list[SignalCell]:
        """All counts since the last batch."""
        with self._open() as db:
            return _cells(db)

    @property
    def consent(self) -> bool:
        """Whether the owner lets signals leave. Off until switched on."""
        with self._open() as db:
            row = db.execute("SELECT value FROM settings WHERE name = 'consent'").fetchone()
        return row is not None and row[0] == "improve-models"

    @consent.setter
    def consent(self, on: bool) -> None:
        with self._open() as db:
            value = "improve-models" if on else ""
            db.execute("INSERT OR REPLACE INTO settings VALUES ('consent', ?)", (value,))

    def pack(self, model: str) -> list[Path]:
        """Move all counts into a batch in the outbox; return the outbox's batches, older ones that never arrived too.

        Raises ConfigurationError without consent.
        """
        if not self.consent:
            raise ConfigurationError(
                "the owner of this device has not agreed to share signals; see what they are with "
                "`sluice-edge signals show`, agree with `sluice-edge signals consent on`"
            )
        with self._open() as db:
            cells = _cells(db)[:MAX_CELLS]
            if cells:
                batch = SignalBatch(
                    batch_id=secrets.token_hex(16),
                    model=model,
                    day=datetime.now(UTC).strftime("%Y-%m-%d"),
                    consent="improve-models",
                    cells=cells,
                )
                # Written before the counts are given up: a crash between the two sends them twice at worst, under ids
                # that nobody can join, rather than losing them.
                durable.write(self._outbox / f"{batch.batch_id}.json", batch.canonical())
                for cell in cells:
                    _count(db, _row(cell), -cell.count)
                db.execute("DELETE FROM answers")
        return sorted(self._outbox.glob("*.json")) if self._outbox.is_dir() else []

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        try:
            fresh = not self._file.exists()
            with closing(sqlite3.connect(self._file, timeout=_BUSY_SECONDS, isolation_level=None)) as db:
                if fresh:
                    self._file.chmod(0o600)
                    db.executescript(_SCHEMA)
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                except BaseException:
                    if db.in_transaction:  # a full disk has rolled back already
                        db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise StorageFullError(f"cannot write {self._file}: the disk is full") from error
            raise EdgeError(f"cannot use {self._file}: {error}") from error


def latency_bucket(seconds: float) -> LatencyBucket:
    """The coarse class of a duration."""
    if seconds < 0.2:
        return LatencyBucket.UNDER_200MS
    if seconds < 1:
        return LatencyBucket.UNDER_1S
    return LatencyBucket.UNDER_5S if seconds < 5 else LatencyBucket.OVER_5S


def token_bucket(tokens: int) -> TokenBucket:
    """The coarse class of an answer's length."""
    if tokens < 16:
        return TokenBucket.UNDER_16
    if tokens < 64:
        return TokenBucket.UNDER_64
    return TokenBucket.UNDER_256 if tokens < 256 else TokenBucket.OVER_256


Row = tuple[str, str, str, str, int, str, str]


def _row(cell: SignalCell) -> Row:
    return (
        cell.lineage,
        cell.domain.value,
        cell.task.value,
        cell.outcome.value,
        cell.feedback,
        cell.latency.value,
        cell.tokens.value,
    )


def _count(db: sqlite3.Connection, cell: Row, by: int) -> None:
    db.execute(
        f"INSERT INTO cells ({_KEY}, count) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET count = count + ?",
        (*cell, by, by),
    )
    db.execute("DELETE FROM cells WHERE count <= 0")


def _cells(db: sqlite3.Connection) -> list[SignalCell]:
    return [
        SignalCell(
            lineage=lineage,
            domain=Domain(domain),
            task=Task(task),
            outcome=Outcome(outcome),
            feedback=feedback,
            latency=LatencyBucket(latency),
            tokens=TokenBucket(tokens),
            count=min(count, MAX_COUNT),
        )
        for lineage, domain, task, outcome, feedback, latency, tokens, count in db.execute(
            f"SELECT {_KEY}, count FROM cells ORDER BY {_KEY}"
        )
    ]
