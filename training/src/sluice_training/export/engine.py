"""A quantised file in llama.cpp, the engine that devices run: next-token distributions and chat answers.

The engine lives in a child process on a UNIX socket in a private folder: it opens no port, and its abort() is an error
here, not the end of the job. `python -m sluice_training.export.engine REQUEST` is that child.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sluice_contracts.dataset import Message

from sluice_training.export.gguf_file import ExportError

DEADLINE = 3600.0
"""Seconds for all questions together."""
MAX_VOCABULARY = 300_000
BYTES_PER_THREAD = 32 * 2**20
"""Weights that a thread should have to read for a token: with less, the threads wait for each other, for most of the
time where the cores are busy (a 4 MB model on two busy cores: 5 ms a token with one thread, 200 ms with two)."""


@dataclass(frozen=True)
class Scored:
    """A prompt and the answer whose tokens' distributions are wanted: one position for each token of `answer`."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class EngineAnswers:
    """What the engine said."""

    log_probabilities: npt.NDArray[np.float32]
    """[positions, vocabulary], all scored answers after one another."""
    texts: list[str]
    """One answer for each chat."""


def threads_for(size: int, cpus: int) -> int:
    """How many of `cpus` threads to answer with, given the file's `size` in bytes."""
    return max(1, min(cpus, size // BYTES_PER_THREAD))


def name() -> str:
    """The engine and its version."""
    return f"llama.cpp (xllamacpp {version('xllamacpp')})"


def ask(
    model: Path,
    scored: list[Scored],
    chats: list[list[Message]],
    max_tokens: int,
    vocabulary: int,
    plain_token: int,
    cpus: int,
) -> EngineAnswers:
    """Load the file and ask it everything, with up to `cpus` threads. `plain_token` is any token that stands for ASCII
    text.

    Raises ExportError if the engine cannot load the file or dies.
    """
    if vocabulary > MAX_VOCABULARY:
        raise ExportError(f"a vocabulary of {vocabulary} tokens is more than parity can compare ({MAX_VOCABULARY})")
    with tempfile.TemporaryDirectory(prefix="sluice-engine-") as temporary:
        folder = Path(temporary)
        request = {
            "model": str(model),
            "scored": [{"prompt": s.prompt, "answer": s.answer} for s in scored],
            "chats": [[m.wire() for m in chat] for chat in chats],
            "maxTokens": max_tokens,
            "vocabulary": vocabulary,
            "plainToken": plain_token,
            "threads": threads_for(model.stat().st_size, cpus),
        }
        (folder / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", "sluice_training.export.engine", str(folder)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
        except subprocess.TimeoutExpired:
            raise ExportError(f"llama.cpp took longer than {DEADLINE:.0f} s with {model.name}") from None
        if result.returncode != 0:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(f"llama.cpp failed with {model.name} (exit {result.returncode}): {last[:300]}")
        texts = json.loads((folder / "texts.json").read_text())
        return EngineAnswers(np.load(folder / "log_probabilities.npy", allow_pickle=False), texts)


def _start(folder: Path, model: str, threads: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cpuparams.poll = 0  # waiting threads sleep: the CPU is shared
    params.cpuparams_batch.poll = 0
    params.warmup = False
    params.ui = False
    params.offline = True
    params.cache_ram_mib = 0
    params.verbosity = 0
    params.hostnames = [str(folder / "engine.sock")]
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise ExportError(f"the engine cannot load {Path(model).name}: {error or 'no reason given'}") from None


def _distribution(server: Any, prompt: list[int], vocabulary: int, plain_token: int) -> npt.NDArray[np.float32]:
    """Log-probabilities of the next token. The engine tells them before its samplers change anything, but not if the
    token it then samples is only part of a character: so a plain one is forced."""
    request = {"prompt": prompt, "n_predict": 1, "n_probs": vocabulary, "temperature": 0, "cache_prompt": True}
    reply = server.handle_completions({**request, "logit_bias": [[plain_token, 1e6]]})
    if "choices" not in reply:
        raise ExportError(f"the engine answered {json.dumps(reply)[:200]}")
    row = np.full(vocabulary, -np.inf, np.float32)
    for token in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        row[token["id"]] = token["logprob"]
    if not np.isfinite(row).all():
        raise ExportError("the engine gave no probability for some tokens")
    return row


def _answer(folder: Path, running: list[Any]) -> None:
    """Answer the request in `folder`. The engine is left in `running`: to destroy it can wait for ever on a thread of
    its own that was just about to sleep, so it goes with the process."""
    request = json.loads((folder / "request.json").read_text())
    server = _start(folder, request["model"], request["threads"])
    running.append(server)
    rows = [
        _distribution(server, item["prompt"] + item["answer"][:position], request["vocabulary"], request["plainToken"])
        for item in request["scored"]
        for position in range(len(item["answer"]))
    ]
    texts = []
    for messages in request["chats"]:
        reply = server.handle_chat_completions(
            {"messages": messages, "max_tokens": request["maxTokens"], "temperature": 0}
        )
        if "choices" not in reply:
            raise ExportError(f"the engine answered {json.dumps(reply)[:200]}")
        texts.append(reply["choices"][0]["message"]["content"] or "")
    np.save(folder / "log_probabilities.npy", np.stack(rows) if rows else np.zeros((0, request["vocabulary"])))
    (folder / "texts.json").write_text(json.dumps(texts))


if __name__ == "__main__":
    engines: list[Any] = []
    status = 0
    try:
        _answer(Path(sys.argv[1]), engines)
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # everything is on disk; see _answer for why nothing is torn down
