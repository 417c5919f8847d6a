"""progress.json and history.jsonl: how far the job has come, for the operator and for people.

Written from a thread of their own, newest state only, so that a slow bucket never slows a step. A failed write is
forgotten: the next one is seconds away.
"""

import json
import threading
import time
from datetime import UTC, datetime
from types import TracebackType

from sluice_contracts.base import canonical_json, timestamp
from sluice_contracts.job import HISTORY_FILE, PROGRESS_FILE
from sluice_contracts.training_run import Progress, Stage
from sluice_storage import NotFoundError, StorageError, open_store

from sluice_training.learn.loop import Logged

INTERVAL = 2.0
"""Seconds between two writes."""


class ProgressWriter:
    """Keeps progress.json current while a `with` block runs; writes once more at its end."""

    def __init__(self, run_uri: str, total_steps: int) -> None:
        self._store = open_store(run_uri)
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._progress = Progress(stage=Stage.STARTING, total_steps=total_steps)
        self._history: list[bytes] = []
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "ProgressWriter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._changed.set()
        self._thread.join(timeout=120)

    def stage(self, stage: Stage) -> None:
        """The job has come to `stage`."""
        with self._lock:
            self._progress = self._progress.model_copy(update={"stage": stage, "eta_seconds": None})
        self._changed.set()

    def trained(self, steps: int) -> None:
        """All steps are done, now or in an earlier attempt."""
        with self._lock:
            self._progress = self._progress.model_copy(update={"step": steps})

    def resume_history(self, step: int) -> None:
        """Keep what an earlier attempt logged up to `step`."""
        try:
            lines = self._store.read(HISTORY_FILE).splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
        except (NotFoundError, ValueError, KeyError):
            kept = []
        with self._lock:
            self._history = kept

    def logged(self, log: Logged) -> None:
        """Training has come to a step."""
        line = {"step": log.step, "loss": round(log.loss, 5), "tokensPerSecond": round(log.tokens_per_second, 1)}
        with self._lock:
            self._history.append(canonical_json(line))
            self._progress = self._progress.model_copy(
                update={
                    "stage": Stage.TRAINING,
                    "step": log.step,
                    "loss": round(log.loss, 5),
                    "tokens_per_second": round(log.tokens_per_second, 1),
                    "eta_seconds": round(log.eta_seconds),
                }
            )
        self._changed.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._changed.wait()
            self._changed.clear()
            started = time.monotonic()
            self._write()
            self._closing.wait(max(0.0, INTERVAL - (time.monotonic() - started)))
        self._write()

    def _write(self) -> None:
        with self._lock:
            progress = self._progress.model_copy(update={"updated_at": timestamp(datetime.now(UTC))})
            history = b"".join(line + b"\n" for line in self._history)
        try:
            if history:
                self._store.write(HISTORY_FILE, history)
            self._store.write(PROGRESS_FILE, progress.canonical())
        except StorageError:
            return
