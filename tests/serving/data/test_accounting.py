"""What a request is charged, and what of its answer is kept, by how it ended."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sluice_contracts.routing import Price
from sluice_serving.gateway.accounting import Accounting, Visit, answer_text, question
from sluice_serving.gateway.budgets import BudgetLedger
from sluice_serving.gateway.completion import Completion
from sluice_serving.gateway.contexts import ContextStore
from sluice_serving.gateway.database import open_database
from sluice_serving.gateway.interactions import InteractionLog
from sluice_serving.gateway.keys import KeyStore
from sluice_serving.gateway.records import Interaction
from sluice_serving.gateway.spool import Spool
from sluice_serving.gateway.tenants import Budget, Caller

PRICE = Price(prompt_token=0.001, output_token=0.002)
CALLER = Caller("acme", "acme/web", budgets=(Budget(window="month", requests=10**6, tokens=10**6, money="1000"),))


@pytest.fixture
def accounting(tmp_path: Path) -> Accounting:
    database = open_database(f"sqlite:///{tmp_path}/x.db")
    return Accounting(
        keys=KeyStore(tmp_path),
        interactions=InteractionLog(database, Spool(tmp_path / "spool", 1 << 20), 60),
        budgets=BudgetLedger(database),
        contexts=ContextStore(database, 1),
        pseudonym_key=b"k" * 16,
    )


async def nothing(_: Any) -> None:
    """A `send` to nobody."""


def ended(**more: Any) -> Interaction:
    values: dict[str, Any] = {
        "id": "x", "time": datetime.now(UTC), "tenant": "acme", "user": None, "model": "m", "version": "v1",
        "lineage": "l", "context_reference": None, "prompt_tokens": 10, "output_tokens": 20, "ttft": None,
        "latency": 1.0, "finish_reason": "stop", "route": "split", "outcome": "ok", "cost": 0.05,
    }  # fmt: skip
    return Interaction(**values | more)


UNCOUNTED = {"prompt_tokens": None, "output_tokens": None, "cost": None}


@pytest.mark.parametrize(
    ("how", "requests", "tokens", "cents"),
    [
        ({}, 1, 30, 5),
        ({"outcome": "client_closed"} | UNCOUNTED, 1, 100 + 7, 10 + 1.4),
        ({"outcome": "broken_stream"} | UNCOUNTED, 1, 100 + 7, 10 + 1.4),
        ({"outcome": "cached", "cost": None}, 1, 0, 0),
        ({"outcome": "client_error"} | UNCOUNTED, 1, 0, 0),
        ({"outcome": "template", "version": None} | UNCOUNTED, 1, 0, 0),
        ({"outcome": "rejected", "version": None} | UNCOUNTED, 0, 0, 0),
        ({"outcome": "unavailable"} | UNCOUNTED, 0, 0, 0),
    ],
    ids=lambda v: v.get("outcome", "ok") if isinstance(v, dict) else "",
)
def test_a_request_is_charged_for_what_it_made_work(
    accounting: Accounting, how: dict[str, Any], requests: int, tokens: int, cents: float
) -> None:
    visit = Visit(CALLER, Completion("chat", True, False, None, b"{}"), nothing)
    accounting.budgets.admit(CALLER, priced=True)
    accounting.end(visit, ended(**how), PRICE, request_bytes=400, events=7)
    (meter,) = accounting.budgets._meters.values()
    assert (meter.own.requests, meter.own.tokens) == (requests, tokens)
    assert meter.own.money / 10**6 == pytest.approx(cents, abs=1e-5)


def completion(kind: Any, stream: bool) -> Completion:
    return Completion(kind, stream, False, None, b"{}")


def events(*contents: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(c).encode() + b"\n\n" for c in contents) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("kind", "stream", "body", "text"),
    [
        ("chat", False, json.dumps({"choices": [{"message": {"content": "hello"}}]}).encode(), "hello"),
        ("text", True, events({"choices": [{"index": 0, "text": "he"}]}, {"choices": [{"index": 0, "text": "llo"}]}),
         "hello"),
        ("embeddings", False, json.dumps({"data": [{"embedding": [0.1]}]}).encode(), ""),
        ("responses", False, json.dumps({"output": [{"type": "reasoning"}, {"content": [{"type": "output_text",
          "text": "hello"}]}]}).encode(), "hello"),
        ("responses", True, events({"type": "response.output_text.delta", "delta": "he"}, {"type": "other"},
          {"type": "response.output_text.delta", "delta": "llo"}), "hello"),
        ("chat", False, b"no JSON", ""),
        ("chat", False, json.dumps({"choices": [{"message": {"content": "x" * 100_000}}]}).encode(), None),
    ],
)  # fmt: skip
def test_the_text_of_an_answer_is_found_in_every_form_and_bounded(
    kind: str, stream: bool, body: bytes, text: Any
) -> None:
    found = answer_text(completion(kind, stream), body)
    assert len(found) <= 65_536
    assert text is None or found == text


def test_a_question_is_its_messages_prompt_or_input_and_bounded() -> None:
    assert question(json.dumps({"messages": [{"role": "user"}], "n": 1}).encode()) == '[{"role": "user"}]'
    assert question(json.dumps({"prompt": "a"}).encode()) == '"a"'
    assert question(json.dumps({"input": ["a"]}).encode()) == '["a"]'
    assert len(question(json.dumps({"prompt": "a" * 100_000}).encode())) == 65_536
