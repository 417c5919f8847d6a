"""The real thing, once: Ray Serve, vLLM and a tiny model, deployed the way KubeRay does it. About a minute."""

import asyncio
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from sluice_contracts.adapters import adapter_application, adapter_name
from sluice_contracts.base import sha256
from sluice_contracts.routing import Backend, RoutingLimits
from sluice_devcluster.ports import free_ports

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT asks for it
]

LINEAGE = "f" * 64
CONTEXT = 256
_ANY = "sha256:" + "a" * 64


def write_tiny_model(folder: Path) -> None:
    """A random Llama of two layers with a byte-level tokenizer and a chat template, in bfloat16."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["hello world"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=512, eos_token_id=0, bos_token_id=None,
        pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def write_adapter(base: Path, folder: Path) -> None:
    """An adapter on the model in `base` as PEFT writes it, random and strong enough to change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=64, target_modules=linear, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    (folder / "README.md").unlink()


def write_manifest(run: Path, role: str = "served", base: str = "sha256:" + "0" * 64) -> str:
    """The manifest of the files below `run`; its digest."""
    artifacts = [
        {"path": p.relative_to(run).as_posix(), "role": role, "size": p.stat().st_size, "sha256": _digest(p)}
        for p in sorted((run / "export").rglob("*"))
        if p.is_file()
    ]
    zero, uri = "sha256:" + "0" * 64, f"file://{run}"
    manifest = {
        "schemaVersion": 1, "model": "support-bot", "lineage": LINEAGE, "trainingRun": "r", "runUri": uri,
        "dataset": {"runId": "d", "uri": f"{uri}/data", "digest": zero}, "baseDigest": base,
        "code": {"gitSha": "0"}, "recipe": {"method": "scratch", "steps": 1},
        "evaluation": {"uri": f"{uri}/e", "digest": zero, "passed": True}, "parityUri": f"{uri}/p",
        "parityDigest": zero, "artifacts": artifacts, "createdAt": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    data = json.dumps(manifest).encode()
    (run / "manifest.json").write_bytes(data)
    return sha256(data)


def _digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class RayCluster:
    """A head node of one's own, driven through the dashboard's Serve API as KubeRay does."""

    home: Path
    dashboard: str
    api: str

    def deploy(self, args: dict[str, Any], *adapters: dict[str, Any]) -> tuple[str, str]:
        """How the last adapter's application ended, or the engine's where there is none: see `ended`."""
        applications = [_application("llm", "sluice_serving.app:build", "/", args)]
        for adapter in adapters:
            name = adapter_application(adapter["manifestDigest"])
            applications.append(_application(name, "sluice_serving.adapter_app:build", None, adapter))
        port = int(self.api.rpartition(":")[2])
        options = {"host": "127.0.0.1", "port": port}
        config = {"proxy_location": "HeadOnly", "http_options": options, "applications": applications}
        self._call("PUT", json.dumps(config).encode())
        return self.ended(applications[-1]["name"])

    def ended(self, name: str) -> tuple[str, str]:
        """An application's final status, and its message with those of its deployments."""
        deadline = time.monotonic() + 150
        while True:
            found = self.application(name)
            if found.get("status") in {"RUNNING", "DEPLOY_FAILED"}:
                parts = [found["message"], *(d["message"] for d in found["deployments"].values())]
                return found["status"], "\n".join(parts)
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    def application(self, name: str) -> dict[str, Any]:
        """What Ray says of an application."""
        found: dict[str, Any] = self._call("GET")["applications"].get(name, {})
        return found

    def replicas(self) -> list[tuple[str, str]]:
        """Name and state of each engine."""
        deployment = self.application("llm")["deployments"]["support-bot"]
        return [(r["replica_id"], r["state"]) for r in deployment["replicas"]]

    def _call(self, method: str, body: bytes | None = None) -> dict[str, Any]:
        url = f"{self.dashboard}/api/serve/applications/"
        request = urllib.request.Request(url, body, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            content = response.read()
        result: dict[str, Any] = json.loads(content) if content else {}
        return result


def _application(name: str, path: str, prefix: str | None, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "import_path": path, "route_prefix": prefix, "args": args}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the training room leaves it."""
    folder = tmp_path_factory.mktemp("run")
    write_tiny_model(folder / "export" / "safetensors")
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """One Ray head with one logical CPU and an empty home, as in a fresh pod."""
    home = Path("/tmp") / f"sluice-ray-{os.getpid()}"  # Ray's sockets need a short path
    home.mkdir()
    gcs, dashboard, agent, agent_grpc, metrics, api, client = free_ports(7)
    environment = {
        **os.environ, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "",
        "SLUICE_MODEL_CACHE": str(home / "models"),
    }  # fmt: skip
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={gcs}", "--num-cpus=1",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}", f"--temp-dir={home / 'ray'}",
        "--disable-usage-stats",
    ]  # fmt: skip
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}/api/serve/applications/", process, home / "log")
        yield RayCluster(home, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{api}")
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in _processes_of(home):
                os.kill(pid, number)
            deadline = time.monotonic() + 10
            while _processes_of(home) and time.monotonic() < deadline:
                time.sleep(0.1)
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def _processes_of(home: Path) -> list[int]:
    """All living processes that were started with this home: Ray's, and those they started."""
    mark, found = f"HOME={home}\0".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def arguments(run: Path, digest: str) -> dict[str, Any]:
    return {
        "model": "support-bot", "modelVersion": "v1", "lineage": LINEAGE, "manifestUri": f"file://{run}/manifest.json",
        "manifestDigest": digest, "maxModelLen": CONTEXT, "maxOngoing": 4,
        "maxOutputTokens": 40, "adapterSlots": 2, "maxAdapterRank": 8,
    }  # fmt: skip


def adapter_arguments(run: Path, digest: str, base: str) -> dict[str, Any]:
    return {
        "name": adapter_name("support-bot", digest), "model": "support-bot", "modelVersion": "v2", "lineage": LINEAGE,
        "manifestUri": f"file://{run}/manifest.json", "manifestDigest": digest, "baseDigest": base,
    }  # fmt: skip


async def test_a_version_with_the_right_digests_answers_and_others_are_refused(
    cluster: RayCluster, run: Path, gateway: Any, tmp_path: Path
) -> None:
    digest = write_manifest(run)
    began = time.monotonic()
    status, message = await asyncio.to_thread(cluster.deploy, arguments(run, digest))
    assert status == "RUNNING", message
    print(f"\nready after {time.monotonic() - began:.1f} s")
    await _check_answers(cluster, gateway)
    await _check_adapters(cluster, gateway, run, digest, tmp_path)

    status, message = await asyncio.to_thread(cluster.deploy, arguments(run, "sha256:" + "1" * 64))
    assert status == "DEPLOY_FAILED"
    assert "manifest.json has digest" in message

    weights = run / "export" / "safetensors" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for blob in (cluster.home / "models" / "sha256").iterdir():
        blob.unlink()  # a node that does not have the files yet fetches them, and finds one changed
    status, message = await asyncio.to_thread(cluster.deploy, arguments(run, digest) | {"modelVersion": "again"})
    assert status == "DEPLOY_FAILED"
    assert "model.safetensors has digest" in message
    assert "refusing to serve it" in message


async def _check_answers(cluster: RayCluster, gateway: Any) -> None:
    route = Backend(model_version="v1", lineage=LINEAGE, manifest_digest=_ANY, url=cluster.api, weight=100)
    await gateway.route(route)
    client = gateway.openai()
    hello: Any = [{"role": "user", "content": "hello"}]
    asked: Any = {"model": "support-bot", "messages": hello, "max_tokens": 5, "temperature": 0.0}
    whole = await client.chat.completions.create(**asked)
    assert whole.usage.completion_tokens <= 5
    assert whole.model == "support-bot"
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    # Without a wish the engine's own cap holds, though the gateway's default of 1,024 is beyond this model's context.
    long = await client.chat.completions.create(model="support-bot", messages=hello, extra_body={"ignore_eos": True})
    assert (long.choices[0].finish_reason, long.usage.completion_tokens) == ("length", 40)
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"], sum(counts["ttft"]["counts"])) == (3, 0, 1)
    await gateway.route(route, limits=RoutingLimits(max_output_tokens=40, in_flight_per_replica=4))
    await asyncio.to_thread(_check_the_contract, gateway)
    counts = (await gateway.analysis())["versions"]["v1"]
    assert counts["errors"] == 0


def _check_the_contract(gateway: Any) -> None:
    """What tests/openai_api holds every endpoint to, but for what a model of random weights cannot do."""
    path = Path(__file__).parents[1] / "openai_api" / "behaviours.py"
    spec = importlib.util.spec_from_file_location("openai_behaviours", path)
    assert spec is not None
    assert spec.loader is not None
    contract = importlib.util.module_from_spec(spec)
    sys.modules["openai_behaviours"] = contract
    spec.loader.exec_module(contract)
    url, key = f"{gateway.url}/v1", "sk-test-5f1c2d"
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as client:
        api = contract.Api(url, key, "support-bot", client, most_bytes=1 << 20, lacks={"embeddings"}, cap=40)
        for behaviour in contract.BEHAVIOURS:
            if behaviour.__name__ not in {"tools_are_called_or_refused", "json_schema_output_or_a_refusal"}:
                behaviour(api)


async def _check_adapters(cluster: RayCluster, gateway: Any, run: Path, base: str, folder: Path) -> None:
    """Adapters come and go beside the version that serves, whose engine takes no notice."""
    right, wrong, foreign = folder / "right", folder / "wrong", folder / "foreign"
    write_adapter(run / "export" / "safetensors", right / "export" / "adapter")
    shutil.copytree(right, wrong)
    shutil.copytree(right, foreign)
    served, before = arguments(run, base), cluster.replicas()
    adapter = adapter_arguments(right, write_manifest(right, "adapter", base), base)
    plain = await _ask(cluster, "support-bot")

    began = time.monotonic()
    status, message = await asyncio.to_thread(cluster.deploy, served, adapter)
    assert status == "RUNNING", message
    print(f"\nadapter answers after {time.monotonic() - began:.1f} s")
    assert cluster.replicas() == before
    changed = await _ask(cluster, adapter["name"])
    assert changed["model"] == adapter["name"]
    assert changed["choices"][0]["text"] != plain["choices"][0]["text"]
    assert (await _ask(cluster, "support-bot"))["choices"][0]["text"] == plain["choices"][0]["text"]

    stable = Backend(model_version="v1", lineage=LINEAGE, manifest_digest=base, url=cluster.api, weight=0)
    name = {"model_version": "v2", "manifest_digest": adapter["manifestDigest"], "engine_model": adapter["name"]}
    await gateway.route(stable, stable.model_copy(update={**name, "weight": 100}))
    client, asked = gateway.openai(), {"model": "support-bot", "prompt": "hello", "max_tokens": 12, "temperature": 0.0}
    through = await client.completions.create(**asked, extra_body={"ignore_eos": True})
    assert (through.model, through.choices[0].text) == ("support-bot", changed["choices"][0]["text"])
    stream = await client.completions.create(**asked, extra_body={"ignore_eos": True}, stream=True)
    chunks = [chunk async for chunk in stream]
    assert {chunk.model for chunk in chunks} == {"support-bot"}
    assert "".join(chunk.choices[0].text for chunk in chunks) == through.choices[0].text

    weights = wrong / "export" / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    tampered = adapter_arguments(wrong, write_manifest(wrong, "adapter", base), base)
    data[-1] ^= 3
    weights.write_bytes(data)
    stranger = adapter_arguments(foreign, write_manifest(foreign, "adapter", _ANY), base)
    status, message = await asyncio.to_thread(cluster.deploy, served, tampered, stranger)
    assert status == "DEPLOY_FAILED"
    assert "is an adapter on the version with manifest sha256:aaaa" in message
    status, message = await asyncio.to_thread(cluster.ended, adapter_application(tampered["manifestDigest"]))
    assert status == "DEPLOY_FAILED"
    assert "adapter_model.safetensors has digest" in message
    assert "refusing to serve it" in message
    assert (await _ask(cluster, tampered["name"]))["error"]["code"] == 404

    deadline = time.monotonic() + 90
    while "choices" in await _ask(cluster, adapter["name"]):
        assert time.monotonic() < deadline, "an adapter that is no longer wanted still answers"
        await asyncio.sleep(1)
    assert cluster.replicas() == before, "the engine that serves has not restarted"
    assert (await _ask(cluster, "support-bot"))["choices"][0]["text"] == plain["choices"][0]["text"]


async def _ask(cluster: RayCluster, model: str) -> dict[str, Any]:
    """The engine's greedy answer under a model name, or its refusal."""

    def ask() -> dict[str, Any]:
        body = {"model": model, "prompt": "hello", "max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{cluster.api}/v1/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            content = error.read()
        found: dict[str, Any] = json.loads(content)
        return found

    return await asyncio.to_thread(ask)
