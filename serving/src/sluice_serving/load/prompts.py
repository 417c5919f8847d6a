"""What the pretended users say."""

import json
from pathlib import Path
from typing import Any

MAX_CHATS = 100_000
BUILT_IN = [
    "I forgot my password, what now?",
    "Where is my order?",
    "How do I change my address?",
    "I would like to speak to a person.",
    "Can I return an item I bought last week?",
    "Which documents do I need for the application?",
    "My app crashes when I open the settings.",
    "Please cancel my subscription.",
]

Chat = list[dict[str, Any]]


class PromptError(Exception):
    """The file of prompts cannot be used; the message names the line."""


def built_in() -> list[Chat]:
    """A few requests to a help desk."""
    return [[{"role": "user", "content": text}] for text in BUILT_IN]


def read_chats(path: Path) -> list[Chat]:
    """Chats of a JSONL file: each line a list of messages, or an object with `messages` or `prompt`.

    A closing message of the assistant is left out: it is the answer. Raises PromptError.
    """
    chats: list[Chat] = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines[:MAX_CHATS], 1):
        if line.strip():
            chats.append(_chat(line, f"{path}:{number}"))
    if not chats:
        raise PromptError(f"{path} holds no chat")
    return chats


def _chat(line: str, where: str) -> Chat:
    try:
        value = json.loads(line)
    except ValueError:
        raise PromptError(f"{where}: not valid JSON") from None
    if isinstance(value, dict):
        prompt = value.get("prompt")
        value = value.get("messages") or ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else None)
    if not isinstance(value, list) or not all(isinstance(m, dict) and "role" in m and "content" in m for m in value):
        raise PromptError(f"{where}: expected messages with role and content, or a prompt")
    messages: Chat = [{"role": m["role"], "content": m["content"]} for m in value]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise PromptError(f"{where}: no message of a user")
    return messages
