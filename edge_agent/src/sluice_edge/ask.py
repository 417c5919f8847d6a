"""`sluice-edge chat`: one question, through the gateway if it runs, else with an engine for this one answer."""

import secrets
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from sluice_contracts.names import Domain, Task
from sluice_contracts.signal import Outcome

from sluice_edge import slots
from sluice_edge.audit import AuditLog
from sluice_edge.engine.child import NO_TLS, Engine
from sluice_edge.engine.fence import Reach, fence
from sluice_edge.errors import EdgeError
from sluice_edge.gateway.serving import Serving, read_serving
from sluice_edge.home import AgentConfig, Home
from sluice_edge.pull.update import engine_settings
from sluice_edge.signals import Observation, Signals

SECONDS = 300.0


@dataclass(frozen=True)
class Question:
    """What is asked, and what it is about."""

    text: str
    domain: Domain
    task: Task
    max_tokens: int
    system: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """As a chat."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Reply:
    """The answer and who gave it."""

    id: str
    answer: str
    tokens: int
    finish_reason: str
    seconds: float
    version: str
    lineage: str
    through: Literal["gateway", "engine"]

    def wire(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return {
            "id": self.id,
            "answer": self.answer,
            "tokens": self.tokens,
            "finishReason": self.finish_reason,
            "seconds": round(self.seconds, 3),
            "version": self.version,
            "lineage": self.lineage,
            "through": self.through,
        }


def ask(home: Home, config: AgentConfig, question: Question) -> Reply:
    """Ask. Without a running gateway this process fences itself for good before it starts an engine.

    Raises NoModelError, EngineError, EdgeError.
    """
    serving = read_serving(home.serving)
    if serving is not None:
        reply = _through_gateway(home, config, serving, question)
        if reply is not None:
            return reply
    return _with_own_engine(home, config, question)


def _through_gateway(home: Home, config: AgentConfig, serving: Serving, question: Question) -> Reply | None:
    """None if nobody listens there: serving.json was left behind by a crash."""
    body = {
        "model": config.model,
        "messages": question.messages(),
        "max_tokens": question.max_tokens,
        "temperature": 0,
        "metadata": {"domain": question.domain.value, "task": question.task.value},
    }
    started = time.monotonic()
    try:
        answer = httpx.post(
            f"http://127.0.0.1:{serving.port}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {home.key()}"},
            timeout=SECONDS,
            trust_env=False,
            verify=NO_TLS,
        )
        data = answer.json()
    except httpx.ConnectError:
        return None
    except (httpx.HTTPError, ValueError) as error:
        raise EdgeError(f"the gateway at 127.0.0.1:{serving.port} did not answer: {error}") from error
    if answer.status_code != 200:
        raise EdgeError(f"the gateway refused: {data.get('error', {}).get('message', answer.status_code)}")
    choice = data["choices"][0]
    return Reply(
        id=data["id"],
        answer=choice["message"].get("content") or "",
        tokens=data["usage"]["completion_tokens"],
        finish_reason=choice.get("finish_reason") or "",
        seconds=time.monotonic() - started,
        version=answer.headers["x-sluice-version"],
        lineage=answer.headers["x-sluice-lineage"],
        through="gateway",
    )


def _with_own_engine(home: Home, config: AgentConfig, question: Question) -> Reply:
    installed = slots.current(home)
    audit = AuditLog(home.audit, home.device().audit_key)
    fence(Reach.UNIX_ONLY, namespace=False)
    with Engine(engine_settings(home, config, installed, home.engine_log)) as engine:
        started = time.monotonic()
        data = engine.chat(question.messages(), max_tokens=question.max_tokens, seconds=SECONDS)
        seconds = time.monotonic() - started
    choice = data["choices"][0]
    reply = Reply(
        id=str(data.get("id") or f"chatcmpl-{secrets.token_hex(12)}"),
        answer=choice["message"].get("content") or "",
        tokens=data["usage"]["completion_tokens"],
        finish_reason=choice.get("finish_reason") or "",
        seconds=seconds,
        version=installed.version.version,
        lineage=installed.version.lineage,
        through="engine",
    )
    try:
        _count(home, audit, question, reply)
    except EdgeError as error:
        sys.stderr.write(f"the answer was not counted: {error}\n")  # a full disk must not cost anybody their answer
    return reply


def _count(home: Home, audit: AuditLog, question: Question, reply: Reply) -> None:
    outcome = Outcome.SUCCESS if reply.finish_reason == "stop" else Outcome.PARTIAL
    Signals(home).record(
        reply.id,
        Observation(reply.lineage, question.domain, question.task, outcome, reply.seconds, reply.tokens),
    )
    audit.append(
        "request",
        request=audit.hash_of(question.text.encode()),
        answer=audit.hash_of(reply.answer.encode()),
        outcome=outcome.value,
        tokens=reply.tokens,
        lineage=reply.lineage,
        route="local",
    )
