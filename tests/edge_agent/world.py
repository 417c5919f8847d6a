"""What the publishing and agent tests share: small real models, run folders, a repository and a file server."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
from sluice_contracts.base import canonical_json, sha256
from sluice_contracts.evaluation import EvaluationReport, MetricValue, ParityReport, ParityResult, SuiteResult
from sluice_contracts.manifest import Artifact, CodeProvenance, DatasetProvenance, EvaluationProvenance, Manifest
from sluice_contracts.names import Quantization, Suite
from sluice_contracts.training_run import GateResult, Method, ParityLimits, Recipe, Waiver
from sluice_storage import open_store
from sluice_training.publish import release as releases
from sluice_training.publish import repository

MODEL = "support-bot"
AT = "2026-11-01T10:00:00Z"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def byte_tokens() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    chars = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [chars[b] for b in range(256)]


def write_gguf(path: Path, *, seed: int = 0, tuned: int | None = None, arch: str = "llama", mute: bool = False) -> Path:
    """A random Llama of about 1.5 MB that llama.cpp loads and that answers bytes.

    With `tuned`, the last layer's weights come from another seed: as after a fine-tune that froze the rest, most of the
    file stays the same. `arch` may be one that no engine knows. With `mute`, every answer ends before it begins.
    """
    hidden = 256
    tokens = [*byte_tokens(), "<|end|>"]
    layers = 2
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(256)
    writer.add_bos_token_id(256)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    random = np.random.default_rng(seed)

    def matrix(name: str, *shape: int) -> None:
        values = random.standard_normal(shape, dtype=np.float32) * 0.05
        if mute:  # every hidden state is all ones, and only the end's output row says yes to that
            values = np.full_like(values, name == "token_embd.weight")
            values[256:] = name in ("token_embd.weight", "output.weight")
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(hidden, np.float32))

    matrix("token_embd.weight", len(tokens), hidden)
    ones("output_norm.weight")
    matrix("output.weight", len(tokens), hidden)
    for layer in range(layers):
        if tuned is not None and layer == layers - 1:
            random = np.random.default_rng(1000 + tuned)
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight")
        ones(block + "ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}{name}.weight", hidden, hidden)
        matrix(block + "ffn_gate.weight", 2 * hidden, hidden)
        matrix(block + "ffn_up.weight", 2 * hidden, hidden)
        matrix(block + "ffn_down.weight", hidden, 2 * hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_run(
    folder: Path,
    models: dict[Quantization, Path],
    *,
    name: str = "run-1",
    passed: bool = True,
    waiver: Waiver | None = None,
    parity_passed: bool = True,
) -> tuple[str, str]:
    """A finished run's folder around the given device files; returns the manifest's URI and digest."""
    lineage = hashlib.sha256(name.encode()).hexdigest()
    uri = f"file://{folder}"
    (folder / "export/gguf").mkdir(parents=True)
    artifacts, results = [], []
    for quantization, source in models.items():
        path = f"export/gguf/{MODEL}-{quantization}.gguf"
        data = source.read_bytes()
        (folder / path).write_bytes(data)
        artifacts.append(
            Artifact(path=path, role="device", quantization=quantization, size=len(data), sha256=sha256(data))
        )
        results.append(
            ParityResult(
                quantization=quantization,
                path=path,
                size=len(data),
                mean_kld=0.004,
                p99_kld=0.05,
                same_top=0.98,
                perplexity_ratio=1.001,
                task_accuracy=0.97,
                task_accuracy_parent=0.97,
                flips=0,
                tokens=1000,
                passed=parity_passed,
                reasons=[] if parity_passed else ["meanKld 0.004 > 0.001"],
            )
        )
    metric = MetricValue(metric="intent.accuracy", value=0.97, low=0.95, high=0.98, n=400)
    report = EvaluationReport(
        lineage=lineage,
        suites=[SuiteResult(suite=Suite.INTENT, digest=sha256(b"suite"), n=400, metrics=[metric])],
        gates=[GateResult(metric="intent.accuracy", value=0.97, bound=">= 0.95", n=400, passed=passed)],
        passed=passed,
        waiver=waiver,
        samples_path="eval/samples.jsonl",
        samples_digest=sha256(b""),
        created_at=AT,
    )
    parity = ParityReport(
        lineage=lineage, limits=ParityLimits(), engine="llama.cpp", results=results, passed=parity_passed, created_at=AT
    )
    (folder / "eval").mkdir()
    (folder / "eval/report.json").write_bytes(report.canonical())
    (folder / "parity.json").write_bytes(parity.canonical())
    manifest = Manifest(
        model=MODEL,
        lineage=lineage,
        training_run=name,
        run_uri=uri,
        dataset=DatasetProvenance(run_id="d1", uri=f"file://{folder}/dataset", digest=sha256(b"dataset")),
        base_digest=sha256(b"base"),
        code=CodeProvenance(git_sha="abc1234"),
        recipe=Recipe(method=Method.SCRATCH, steps=10),
        evaluation=EvaluationProvenance(
            uri=f"{uri}/eval/report.json", digest=report.content_digest(), passed=passed, waiver=waiver
        ),
        parity_uri=f"{uri}/parity.json",
        parity_digest=parity.content_digest(),
        artifacts=artifacts,
        created_at=AT,
    )
    data = canonical_json(manifest.wire())
    (folder / "manifest.json").write_bytes(data)
    return f"{uri}/manifest.json", sha256(data)


class Publisher:
    """A repository in a folder and the person who holds its keys. `now` may be set to travel in time."""

    def __init__(self, root: Path, model_maker=write_gguf) -> None:
        self.folder = root / "repository"
        self.uri = f"file://{self.folder}"
        self.keys = root / "keys"
        self.root = root
        self.now = datetime.now(UTC)
        self.store = open_store(self.uri)
        self.anchor = repository.create(self.store, self.keys, root_keys=1, threshold=1, now=self.now)
        self.root_file = self.keys / "root.json"
        self.root_file.write_bytes(self.anchor)

    def release(
        self, version: str, model: Path, *, percent: int = 100, quantization: Quantization = Quantization.Q8_0, **run
    ):
        """Publish one file as a version, from a run folder made for it."""
        folder = self.root / f"runs-{version}"
        if folder.exists():
            data = (folder / "manifest.json").read_bytes()
            uri, digest = f"file://{folder}/manifest.json", sha256(data)
        else:
            uri, digest = write_run(folder, {quantization: model}, name=f"run-{version}", **run)
        wish = releases.Wish(uri, digest, "stable", version, percent)
        return releases.publish_release(self.store, self.keys, self.anchor, wish, self.now, lambda line: None)

    def pieces(self) -> list[Path]:
        """All stored pieces."""
        return sorted(p for p in self.folder.glob("pieces/sha256/*/*") if p.is_file())


class FileServer:
    """A real HTTP server over a folder, with Range, that counts bytes and can misbehave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        """Bytes by the first component of the path: metadata, targets, pieces."""
        self.fail_once: set[str] = set()
        """Paths that answer 503 the next time."""
        self.after_pieces = None
        """Called with the number of pieces served so far, before each next one."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *args: None  # clients that hang up are part of the tests
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/").partition("?")[0]
        kind = path.partition("/")[0]
        self.requests[kind] += 1
        if kind == "pieces" and self.after_pieces is not None:
            self.after_pieces(self.requests["pieces"])
        file = self.folder / path
        if path in self.fail_once:
            self.fail_once.discard(path)
            status, data = 503, b""
        elif file.is_file():
            status, data = 200, file.read_bytes()
            wanted = handler.headers.get("Range", "")
            if wanted.startswith("bytes="):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                status, data = 206, data[int(first) : int(last) + 1 if last else None]
        else:
            status, data = 404, b"not found"
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        if status < 400:
            self.sent[kind] += len(data)

    def reset(self) -> None:
        self.requests.clear()
        self.sent.clear()

    @contextmanager
    def running(self) -> Iterator["FileServer"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join(10)
            self._server.server_close()
