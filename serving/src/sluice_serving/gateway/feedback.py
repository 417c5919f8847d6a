"""POST /v1/feedback {id, feedback, outcome}: what an answer's reader thought of it, as the application tells.

The same request as at a device's agent, and the same words: feedback 1, 0 or -1 for a thumb up, none, or down; outcome
`success`, `partial` (of use once edited) or `failure`, which stays as it was where none is told. `id` is the answer's
`x-request-id`. The last word counts, and what is sent again changes nothing. Kept beside the request's record, for as
long; no text is taken."""

from typing import Annotated

from pydantic import Field, StringConstraints
from sluice_contracts.base import Contract
from sluice_contracts.signal import Outcome
from starlette.types import Receive, Scope, Send

from sluice_serving.gateway.accounting import Accounting
from sluice_serving.gateway.asgi import Disconnected, read_body, send_body, send_start
from sluice_serving.gateway.bodies import parsed
from sluice_serving.gateway.database import Database, DatabaseDown, DataRefused, moment
from sluice_serving.gateway.drift.counting import DriftCounter
from sluice_serving.gateway.drift.store import move
from sluice_serving.gateway.errors import ApiError

PATH = "/v1/feedback"
MAX_BODY = 1024
MAX_AT_ONCE = 16
RETRY_AFTER = 1.0
DOWN_RETRY_AFTER = 5.0
WRITE = """INSERT INTO ai_feedback (id, time, tenant, pseudonym, day, feedback, outcome)
  VALUES ($1, $2, $3, $4, $5, $6, $7)
  ON CONFLICT (id) DO UPDATE SET day = excluded.day, feedback = excluded.feedback, outcome = excluded.outcome"""


class Feedback(Contract):
    """The body."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$", max_length=32)]
    feedback: Annotated[int, Field(ge=-1, le=1, strict=True)] = 0
    outcome: Outcome | None = None


class FeedbackApi:
    """Handles PATH. Raises ApiError before it has answered."""

    def __init__(self, accounting: Accounting, database: Database, drift: DriftCounter | None) -> None:
        self._accounting, self._database, self._drift = accounting, database, drift
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        caller = await self._accounting.authenticate(scope)
        self._accounting.check_shared()
        try:
            told = parsed(Feedback, await read_body(scope, receive, MAX_BODY))
        except Disconnected:
            return
        if self._running >= MAX_AT_ONCE:
            raise ApiError(429, "Too much feedback at once; try again.", code="overloaded", retry_after=RETRY_AFTER)
        user = None if caller.user is None else self._accounting.pseudonym(caller.tenant, caller.user)
        self._running += 1
        try:
            known = await self._keep(told, caller.tenant, user)
        except DatabaseDown:
            raise ApiError(503, "The database cannot be reached now; try again.", code="database_unavailable",
                           retry_after=DOWN_RETRY_AFTER) from None  # fmt: skip
        except DataRefused:
            raise ApiError(400, "The database cannot store this.", code="invalid_value") from None
        finally:
            self._running -= 1
        if not known:
            raise ApiError(404, "No record of a request has this id: it is an answer's x-request-id, known a second "
                           "after the answer and for as long as records are kept.", param="id",
                           code="not_found")  # fmt: skip
        await send_start(send, 200, b"application/json", [], len(b'{"ok": true}'))
        await send_body(send, b'{"ok": true}', more=False)

    async def _keep(self, told: Feedback, tenant: str, user: str | None) -> bool:
        """Whether the tenant has such a request (and, where a user is meant, the user has)."""
        today = self._drift.today if self._drift is not None else ""
        async with self._database.transaction() as session:
            await session.lock(f"feedback.{told.id}")
            rows = await session.fetch(
                "SELECT i.time, i.pseudonym, i.version, f.day, f.feedback, f.outcome FROM ai_interactions i "
                "LEFT JOIN ai_feedback f ON f.id = i.id WHERE i.id = $1 AND i.tenant = $2",
                told.id, tenant,
            )  # fmt: skip
            if not rows or (user is not None and rows[0]["pseudonym"] != user):
                return False
            (row,) = rows
            outcome = told.outcome.value if told.outcome else row["outcome"]
            if row["feedback"] == told.feedback and row["outcome"] == outcome:
                return True
            await session.execute(
                WRITE, told.id, moment(row["time"]), tenant, row["pseudonym"], today, told.feedback, outcome
            )
            if self._drift is not None and self._drift.pool and row["version"] is not None:
                words = ("feedback", row["feedback"], told.feedback), ("outcome", row["outcome"], outcome)
                for feature, old, new in words:
                    # What was said on a former day stays counted there; today's count is of today's words.
                    replaced = str(old) if old is not None and row["day"] == today else None
                    if new is not None and replaced != str(new):
                        await move(session, self._drift.pool, today, row["version"], feature, replaced, str(new))
        return True
