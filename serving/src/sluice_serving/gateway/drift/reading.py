"""The report from the database, for whoever asks outside a gateway."""

from datetime import UTC, datetime

from sluice_contracts.drift import Drift

from sluice_serving.gateway.database import Database
from sluice_serving.gateway.drift.report import SINCE_DAYS, Report, make_report, needed_from, spared
from sluice_serving.gateway.drift.store import last_day, pools, read


class UnknownPool(Exception):
    """Which pool is meant, nobody can tell; the message says what to do."""


class NoCounts(Exception):
    """The day that is asked for has none; the message says which has."""


async def drift_report(database: Database, settings: Drift, pool: str, day: str | None) -> Report:
    """The report of `pool`, or of the only one there is, as of `day` or of the last with counts. Raises UnknownPool,
    NoCounts, DatabaseDown, DataRefused."""
    known = await pools(database)
    if pool and known and pool not in known:
        raise UnknownPool(f"--pool {pool!r}: the database has counts of {', '.join(known)}")
    if not pool and len(known) > 1:
        raise UnknownPool(f"the database has counts of {', '.join(known)}: name one with --pool")
    name = pool or (known[0] if known else "this pool")
    end = day or await last_day(database, name) or datetime.now(UTC).date().isoformat()
    first = needed_from(end, settings, SINCE_DAYS)
    cells = await read(database, name, first, spared(settings))
    report = make_report(name, cells, settings, last=end)
    if day is not None and not report.findings and (last := await last_day(database, name)) is not None:
        raise NoCounts(f"{name} has no counts of {day}; the last day that has some is {last}")
    return report
