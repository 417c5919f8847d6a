"""One example before it becomes a row: a chat, its tags, and the group that must not straddle the split."""

import hashlib
import random
from dataclasses import dataclass

from sluice_contracts.dataset import DatasetRow, Message
from sluice_contracts.names import Domain, Task

TAG_HARMFUL = "harmful"
TAG_BENIGN = "benign"
TAG_ANSWERABLE = "answerable"
TAG_UNANSWERABLE = "unanswerable"
TAG_CORRUPTED = "corrupted"


@dataclass(frozen=True)
class Example:
    """A chat that a generator made."""

    domain: Domain
    task: Task
    system: str
    turns: tuple[tuple[str, str], ...]
    """Pairs of what the user says and what the assistant should answer."""
    group: str
    """Examples of one group are variants of each other."""
    tags: tuple[str, ...] = ()

    def row(self) -> DatasetRow:
        """The example as a dataset row; its id is a digest of its content."""
        messages = [Message(role="system", content=self.system)]
        for user, assistant in self.turns:
            messages += [Message(role="user", content=user), Message(role="assistant", content=assistant)]
        text = "\x1f".join(f"{m.role}\x1e{m.content}" for m in messages)
        digest = hashlib.sha256(f"{self.domain}\x1f{self.task}\x1f{text}".encode()).hexdigest()
        return DatasetRow(
            id=f"{self.task}-{digest[:16]}",
            messages=messages,
            domain=self.domain,
            task=self.task,
            tags=list(self.tags),
        )


def rng_for(*parts: object) -> random.Random:
    """A generator seeded by `parts`, the same on every machine and Python version."""
    text = "\x1f".join(str(p) for p in parts)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def bucket(of: int, *parts: object) -> int:
    """A stable number in [0, of) drawn from `parts`: decides once and for all what is held out."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % of
