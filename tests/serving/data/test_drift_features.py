"""What is counted of a request: closed bins, whatever the text says."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_contracts.drift import Drift, DriftIntent
from sluice_contracts.names import Domain, Task
from sluice_contracts.signal import TokenBucket
from sluice_serving.gateway.drift.features import ANSWER_EDGES, PROMPT_EDGES, Heard, Reader, length
from sluice_serving.gateway.drift.language import language

INTENTS = [DriftIntent(name="refund", phrases=["money back", "refund"]), DriftIntent(name="order", phrases=["order"])]


def heard(question: Any = "hi", answer: Any = "Hello.", labels: Any = None, **more: Any) -> Heard:
    """A chat, or what `more` says instead."""
    messages = [{"role": "system", "content": "refund"}, {"role": "user", "content": question}]
    request = {"messages": messages} | ({} if labels is None else {"metadata": labels})
    message = answer if isinstance(answer, dict) else {"content": answer}
    values: dict[str, Any] = {"request": encoded(request), "answer": encoded(choice(message=message))}
    return Heard(**{"kind": "chat", "stream": False} | values | more)


def choice(**content: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0} | content]}


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("Where is my order, please?", "en"),
        ("Wie kann ich mein Passwort zurücksetzen?", "de"),
        ("Où est ma commande, et quand est-ce que je peux payer ?", "fr"),
        ("¿Cómo puedo cambiar mi contraseña?", "es"),
        ("Come posso cambiare la mia password?", "it"),
        ("Como posso mudar a minha senha?", "pt"),
        ("Hoe kan ik mijn bestelling annuleren?", "nl"),
        ("Jak mogę zmienić moje hasło?", "pl"),
        ("Hur kan jag ändra mitt lösenord?", "sv"),
        ("Bu sipariş için ne yapabilirim? Benim siparişim çok geç.", "tr"),
        ("Как мне изменить мой пароль?", "ru"),
        ("Як мені змінити мій пароль?", "uk"),
        ("私の注文はどこですか", "ja"),
        ("我的订单在哪里", "zh"),
        ("주문은 어디에 있나요", "ko"),
        ("איפה ההזמנה שלי", "he"),
        ("شكرا جزيلا", "und-Arab"),
        ("reset password", "und-Latn"),
        ("4711 ++", "und"),
        ("", "und"),
    ],
)
def test_languages(text: str, tag: str) -> None:
    assert language(text) == tag


def test_lengths_are_parts_of_a_devices() -> None:
    edges = {int(b.value.removeprefix("under-")) for b in TokenBucket if b.value.startswith("under-")}
    assert edges <= set(ANSWER_EDGES)
    assert edges <= set(PROMPT_EDGES)
    assert [length(n, (8, 16)) for n in (0, 7, 8, 15, 16, 99)] == ["under-8"] * 2 + ["under-16"] * 2 + ["over-16"] * 2


@pytest.mark.parametrize(
    ("drift", "of", "intent"),
    [
        ({}, heard("I want my MONEY  back for the order"), "refund"),  # the first of the spec that matches
        ({}, heard("the orders"), "other"),  # whole words
        ({}, heard([{"type": "text", "text": "my order"}]), "order"),
        ({}, heard("my order", labels={"intent": "refund"}), "refund"),  # who knows best
        ({}, heard("my order", labels={"intent": "jane@example.org"}), "other"),
        ({}, heard("my order", labels={"intent": ["refund"]}), "other"),
        ({"intent_field": "intent"}, heard("my order", json.dumps({"intent": "refund"})), "refund"),
        ({"intent_field": "intent"}, heard("my order", "intent: refund"), "refund"),
        ({"intent_field": "intent"}, heard("my order", "intent: 4711"), "other"),
        ({"intent_field": "intent"}, heard("my order", "Refund, I think."), "other"),
    ],
)
def test_intents(drift: dict[str, Any], of: Heard, intent: str) -> None:
    assert Reader(Drift(intents=INTENTS, **drift)).bins(of)["intent"] == intent


EVENTS = b"".join(
    b"data: " + encoded(choice(delta={"content": word})) + b"\n\n" for word in ("I\u2019m un", "able to tell", " you.")
)
RESPONSE = {"output": [{"content": [{"type": "refusal", "refusal": "No."}]}]}
COMPLETED = b"event: response.completed\ndata: " + encoded({"response": RESPONSE}) + b"\n\n"


@pytest.mark.parametrize(
    ("of", "refusal"),
    [
        (heard(answer="Of course."), "answered"),
        (heard(answer="Sorry, but I can't help with that."), "refused"),
        (heard(answer="Press Reset. " * 40 + "I can't help with more."), "answered"),  # not where answers refuse
        (heard(answer={"content": None, "refusal": "No."}), "refused"),
        (Heard("chat", False, None, None, finish_reason="content_filter"), "refused"),
        (Heard("chat", True, None, EVENTS), "refused"),
        (Heard("text", False, None, encoded(choice(text="I cannot help with it."))), "refused"),
        (Heard("responses", False, None, encoded(RESPONSE)), "refused"),
        (Heard("responses", True, None, COMPLETED), "refused"),
        (Heard("chat", False, None, None), None),  # too long to be looked at
        (Heard("chat", False, None, b"{"), None),
    ],
)
def test_refusals(of: Heard, refusal: str | None) -> None:
    assert Reader(Drift()).bins(of).get("refusal") == refusal


def test_labels_are_the_devices_and_a_long_request_has_its_lengths_only() -> None:
    labels = {"domain": "healthcare", "task": "something else"}
    found = Reader(Drift()).bins(heard(labels=labels, prompt_tokens=20, output_tokens=3))
    assert found == {
        "prompt_length": "under-32", "answer_length": "under-8", "refusal": "answered", "language": "und-Latn",
        "domain": "healthcare", "task": "other",
    }  # fmt: skip
    assert Reader(Drift()).bins(Heard("chat", False, None, None, prompt_tokens=9000)) == {"prompt_length": "over-8192"}


@settings(deadline=None)
@given(
    st.text(max_size=60),
    st.text(max_size=60),
    st.dictionaries(st.sampled_from(["intent", "domain", "task"]), st.text()),
)
def test_no_text_gets_into_the_counts(question: str, answer: str, labels: dict[str, str]) -> None:
    reader = Reader(Drift(intents=INTENTS, intent_field="intent"))
    found = reader.bins(heard(question, answer, labels))
    closed = {"refund", "order", "other", "unlabelled", "answered", "refused", *Domain, *Task}
    assert {v for k, v in found.items() if k != "language"} <= closed
    assert len(found["language"]) <= 8


NAMES = st.sampled_from(["messages", "input", "prompt", "role", "content", "metadata", "choices", "message", "output"])
JSON = st.recursive(
    st.none() | st.integers() | st.just("user") | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.binary(max_size=80) | JSON)
def test_nothing_that_is_sent_can_stop_the_counting(anything: Any) -> None:
    reader = Reader(Drift(intents=INTENTS, intent_field="intent"))
    for kind in ("chat", "text", "responses"):
        for stream in (False, True):
            body = encoded(anything)
            reader.bins(Heard(kind, stream, body, b"data: " + body if stream else body))  # type: ignore[arg-type]
