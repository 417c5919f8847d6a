"""Counts out of a Prometheus that scrapes the gateways: an alternative to asking the gateways themselves.

The gateways show the analysis's own counts of its present window as `sluice_analysis_counts`, bucket by bucket, so the
verdict is the same wherever they are read. What a gateway had counted before it was restarted is still in Prometheus:
each process has a label of its own, and its last value in the window's time counts.

A Prometheus that has stopped scraping still answers with old values. So the newest scrape must be recent, or there are
no counts: a canary that nobody watches must not look well.

HTTP API: prometheus.io/docs/prometheus/latest/querying/api (instant queries, POST with a form).
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import ValidationError
from sluice_contracts.analysis import VersionCounts
from sluice_contracts.analysis_rows import Row, from_rows
from sluice_contracts.base import seconds
from sluice_contracts.inference_pool import PrometheusSource

from sluice_operator.inference_pool.evidence import Evidence
from sluice_operator.plan import Meta, bounded
from sluice_operator.settings import Prometheus

METRIC = "sluice_analysis_counts"
LABELS = ("version", "count", "length", "bin")
FRESH_SECONDS = 300
"""How old the newest scrape may be: Prometheus's own patience with a series that is no longer there."""
SHORTEST, LONGEST = 600, 86_400
"""Seconds that are looked back for processes that have ended."""
LIMIT_BYTES = 16 << 20
MESSAGE = 160


class SourceError(Exception):
    """Prometheus did not give what was asked of it; the message says what."""


def queries(meta: Meta, window: str, age: float) -> tuple[str, str]:
    """PromQL: how many gateways were scraped just now, and the counts of the window, which began `age` seconds ago."""
    chosen = f"{METRIC}{{pool={_quoted(f'{meta.namespace}/{meta.name}')},window={_quoted(window)}}}"
    back = int(min(LONGEST, max(SHORTEST, age + FRESH_SECONDS)))
    live = f"count(count by (process) (last_over_time({chosen}[{FRESH_SECONDS}s])))"
    return live, f"sum by ({', '.join(LABELS)}) (last_over_time({chosen}[{back}s]))"


def _quoted(text: str) -> str:
    """A PromQL string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def vector(body: bytes) -> list[tuple[Mapping[str, str], float]]:
    """The samples of an instant query's answer. Raises SourceError."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        raise SourceError("its answer is no JSON: is the URL that of a Prometheus?") from None
    if not isinstance(found, dict) or found.get("status") != "success":
        told = found.get("error") if isinstance(found, dict) else None
        raise SourceError(bounded(f"it refuses the query: {told or 'no reason given'}", MESSAGE))
    try:
        if found["data"]["resultType"] != "vector":
            raise SourceError("its answer is no instant vector")
        return [(dict(one["metric"]), float(one["value"][1])) for one in found["data"]["result"]]
    except (KeyError, TypeError, ValueError, IndexError):
        raise SourceError("its answer does not read as an instant vector") from None


def versions(samples: list[tuple[Mapping[str, str], float]]) -> dict[str, VersionCounts]:
    """Each version's counts. Raises SourceError."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for labels, value in samples:
        version, name, length, place = (labels.get(label, "") for label in LABELS)
        rows[version].append(Row(name, length, place, value))
    try:
        return {version: from_rows(found) for version, found in rows.items() if version}
    except (ValueError, ValidationError) as error:
        raise SourceError(bounded(f"its counts do not read: {error}", MESSAGE)) from None


async def gather_from_prometheus(
    source: PrometheusSource,
    meta: Meta,
    window: str,
    age: float,
    http: aiohttp.ClientSession,
    default: Prometheus,
) -> Evidence:
    """The evidence of `window`. Anything that goes wrong is evidence of nothing, with the reason."""
    url = (source.url or default.url).rstrip("/")
    if not url:
        text = "analysis.source.prometheus has no url, and the chart's values name none (analysis.prometheus.url)"
        return Evidence(trouble=text)
    where = f"Prometheus at {bounded(url, 80)}"
    deadline = aiohttp.ClientTimeout(total=max(0.1, seconds(source.timeout)))
    try:
        # The token belongs to the Prometheus of the chart's values: a pool's author must not have it sent elsewhere.
        headers = _authorization(default.token_file) if url == default.url else {}
        live, counts = queries(meta, window, age)
        alive = sum(int(value) for _, value in vector(await _ask(http, url, live, headers, deadline)))
        if alive == 0:
            text = f"{where} has scraped no counts of this rollout in the last {FRESH_SECONDS} s"
            return Evidence(trouble=text)
        return Evidence(versions(vector(await _ask(http, url, counts, headers, deadline))), alive, alive)
    except SourceError as error:
        return Evidence(trouble=f"{where}: {error}")
    except TimeoutError:
        return Evidence(trouble=f"{where}: no answer within {source.timeout}")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Evidence(trouble=f"{where}: {type(error).__name__}")


def _authorization(token_file: Path | None) -> dict[str, str]:
    """Read anew each time: tokens are rotated. Raises SourceError."""
    if token_file is None:
        return {}
    try:
        return {"authorization": f"Bearer {token_file.read_text().strip()}"}
    except OSError as error:
        raise SourceError(f"its token cannot be read: {error.strerror}") from None


async def _ask(
    http: aiohttp.ClientSession, url: str, query: str, headers: Mapping[str, str], deadline: aiohttp.ClientTimeout
) -> bytes:
    """The body of an instant query's answer. Raises SourceError, aiohttp's errors, TimeoutError."""
    async with http.post(
        f"{url}/api/v1/query",
        data={"query": query},
        headers=headers,
        timeout=deadline,
        allow_redirects=False,
    ) as response:
        body = b""
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > LIMIT_BYTES:
                raise SourceError(f"its answer has more than {LIMIT_BYTES} bytes")
        # 400 and 422 carry Prometheus's own words in the body; anything else is somebody else's page.
        if response.status not in {200, 400, 422, 503}:
            raise SourceError(f"it answered {response.status}")
        return body
