"""A person's machine in the story: the edge agent, driven as its owner and their applications would.

Its owner uses the command line; an application uses the OpenAI API on 127.0.0.1, with the key from the agent's home.
"""

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from sluice_devcluster.demo.steps import StoryError
from sluice_devcluster.demo.world import World, wait


@dataclass(frozen=True)
class Question:
    """One thing a person asks, and the answer that would be right."""

    messages: tuple[dict[str, str], ...]
    expected: str
    domain: str
    task: str


def read_questions(lines: Sequence[str], task: str) -> list[Question]:
    """Questions of one task from the lines of a dataset file: chats of one turn, without their answer."""
    questions = []
    for line in lines:
        row = json.loads(line)
        *asked, answer = row["messages"]
        if row["task"] == task and sum(m["role"] == "user" for m in asked) == 1:
            questions.append(Question(tuple(asked), answer["content"], row["domain"], row["task"]))
    return questions


def is_right(answer: str, expected: str) -> bool:
    """Whether an answer says what was expected, but for space around it."""
    return answer.strip() == expected.strip()


@dataclass(frozen=True)
class Device:
    """One device with an agent in its own home folder."""

    world: World
    home: Path
    port: int

    def run(self, *words: str | Path, deadline: float = 120, check: bool = True) -> CompletedProcess[str]:
        """Run the agent's command line."""
        environment = {"SLUICE_HOME": str(self.home)}
        return self.world.run(["sluice-edge", *words], deadline=deadline, check=check, environment=environment)

    def ask_json(self, *words: str | Path, deadline: float = 120) -> dict[str, Any]:
        """Run a command of the agent that prints JSON."""
        environment = {"SLUICE_HOME": str(self.home)}
        return self.world.json(["sluice-edge", *words, "-o", "json"], deadline=deadline, environment=environment)

    def sync(self) -> dict[str, Any]:
        """Pull what is new; how many bytes of what that took."""
        return self.ask_json("sync", deadline=180)

    def status(self) -> dict[str, Any]:
        """The device's receipt: which version it runs, since when."""
        return self.ask_json("status")

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Keep the agent's local API up while the block runs."""
        command = ["sluice-edge", "serve", "--port", str(self.port)]
        with self.world.background(command, "device-serve.log", {"SLUICE_HOME": str(self.home)}):
            wait(self._ready, what="the device's local API", deadline=60, every=0.3)
            yield

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request of an application to the local API."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={
                "authorization": f"Bearer {(self.home / 'key').read_text().strip()}",
                "content-type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                value = json.load(response)
        except OSError as error:
            raise StoryError(f"the device's local API did not answer {path}: {error}") from None
        assert isinstance(value, dict)
        return value

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5) as response:
                return bool(json.load(response).get("ready"))
        except OSError:
            return False
