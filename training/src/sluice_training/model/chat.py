"""Tokenizer and chat format: what text becomes before a model sees it.

`<|bos|>` once, then each message as `<|role|>`, a space, the content, `<|end|>`. The space makes the first word of a
message the same token as anywhere else, so that copying a word from the context is copying one token.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sluice_contracts.dataset import DatasetRow, Message
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL = (PAD, BOS, END, *ROLES.values())
VOCABULARY = 1024
"""Size of a tokenizer that is trained from scratch."""
TEMPLATE = (
    "{{'<|bos|>'}}{% for m in messages %}{{'<|' + m['role'] + '|> ' + m['content'] + '<|end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|assistant|>'}}{% endif %}"
)
"""The same format as a Jinja template, for vLLM, llama.cpp and transformers."""
IGNORE = -100
"""Target of a position that is not learned."""


class ChatTokenizer:
    """A tokenizer that knows the chat format."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        known = tokenizer.get_vocab()
        if missing := [token for token in SPECIAL if token not in known]:
            raise ValueError(f"the tokenizer lacks the chat tokens {', '.join(missing)}")
        ids = {token: known[token] for token in SPECIAL}
        self.pad: int = ids[PAD]
        self.bos: int = ids[BOS]
        self.end: int = ids[END]
        self.roles: dict[str, int] = {role: ids[token] for role, token in ROLES.items()}

    @property
    def size(self) -> int:
        """Number of tokens."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def plain_token(self) -> int:
        """A token that stands for one ASCII letter."""
        return self._content("a")[-1]

    @classmethod
    def train(cls, texts: Iterable[str], size: int = VOCABULARY) -> "ChatTokenizer":
        """Learn a byte-level BPE of `size` tokens from `texts`. Any text can be encoded with it: all 256 bytes are
        tokens."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator((" " + text for text in texts), trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> "ChatTokenizer":
        """The tokenizer of a model folder. Raises ValueError, FileNotFoundError."""
        return cls(Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8")))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": list(ROLES.values()),
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of `messages`, and the token after which the assistant answers."""
        ids = [self.bos]
        for message in messages:
            ids += [self.roles[message.role], *self._content(message.content), self.end]
        return [*ids, self.roles["assistant"]]

    def answer(self, text: str) -> list[int]:
        """Tokens of an answer, its end among them."""
        return [*self._content(text), self.end]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens and surrounding space."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def encode_rows(self, rows: Sequence[DatasetRow]) -> list[tuple[list[int], list[int]]]:
        """(tokens, targets) of each row, equally long. `targets[i]` is the token that should follow `tokens[i]`, or
        IGNORE: only what the assistant says, and the end of it, is learned."""
        encoded = iter(
            self.tokenizer.encode_batch_fast(
                [" " + m.content for row in rows for m in row.messages], add_special_tokens=False
            )
        )
        documents = []
        for row in rows:
            ids, learned = [self.bos], [False]
            for message in row.messages:
                content = next(encoded).ids
                assistant = message.role == "assistant"
                ids += [self.roles[message.role], *content, self.end]
                learned += [False, *[assistant] * (len(content) + 1)]
            targets = [id_ if learn else IGNORE for id_, learn in zip(ids[1:], learned[1:], strict=True)]
            documents.append((ids, [*targets, IGNORE]))
        return documents

    def _content(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(" " + text, add_special_tokens=False).ids)
