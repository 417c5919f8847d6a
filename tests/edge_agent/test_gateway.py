"""The OpenAI-compatible API of a served device, used with OpenAI's own client."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
from edge_world import MODEL
from sluice_edge.gateway.app import Turn
from sluice_edge.gateway.chat_request import ChatRequest

SECRET = "canary-6f1e-TOKEN"


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Served:
    """`sluice-edge serve` of a device."""

    def __init__(self, device, *args: str) -> None:
        self.device = device
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sluice_edge", "serve", "--home", str(device.home.root), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(self._ready)
        self.url = f"http://127.0.0.1:{self.serving()['port']}"
        self.key = device.home.key()
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key=self.key, max_retries=0, timeout=30)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        if not self.device.home.serving.exists():
            return False
        try:
            return httpx.get(f"http://127.0.0.1:{self.serving()['port']}/healthz", timeout=1, verify=False).json()[
                "ready"
            ]
        except httpx.HTTPError:
            return False

    def serving(self) -> dict:
        return json.loads(self.device.home.serving.read_bytes())

    def children(self) -> dict[str, int]:
        """Process ids of the engine and the gateway."""
        found = {}
        for line in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            command = Path(f"/proc/{line}/cmdline").read_bytes().decode()
            for name in ("engine", "gateway"):
                if f"sluice_edge.{name}.process" in command:
                    found[name] = int(line)
        return found

    def ask(self, text: str = "hello", **more):
        settings = {"max_tokens": 5, "temperature": 0} | more
        return self.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": text}], **settings
        )

    def post(self, body: dict, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        return httpx.post(
            self.url + path,
            json=body,
            headers={"Authorization": f"Bearer {self.key}"} | headers,
            timeout=30,
            verify=False,
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)


@contextmanager
def serving(device, *args: str) -> Iterator[Served]:
    served = Served(device, *args)
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture
def served(device, publisher, models, server) -> Iterator[Served]:
    publisher.release("v1", models["one"])
    device.sync()
    with serving(device) as running:
        yield running


def body(**changes) -> dict:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3} | changes


def test_openais_client_talks_to_it(served, device) -> None:
    assert [m.id for m in served.client.models.list()] == [MODEL]
    whole = served.ask(metadata={"domain": "leadership", "task": "intent"})
    assert whole.model == MODEL
    assert whole.usage.completion_tokens == 5
    assert whole.choices[0].finish_reason == "length"

    chunks = list(served.ask(stream=True))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert streamed == whole.choices[0].message.content
    assert all(c.usage is None for c in chunks)
    with_usage = list(served.ask(stream=True, stream_options={"include_usage": True}))
    assert with_usage[-1].usage.completion_tokens == 5

    cells = device.json("signals", "show")["cells"]
    assert sum(c["count"] for c in cells) == 3
    assert {(c["domain"], c["task"]): c["count"] for c in cells} == {
        ("leadership", "intent"): 1,
        ("general", "question"): 2,
    }

    served.client.post("/feedback", body={"id": whole.id, "feedback": -1, "outcome": "failure"}, cast_to=object)
    moved = [c for c in device.json("signals", "show")["cells"] if c["domain"] == "leadership"]
    assert [(c["outcome"], c["feedback"], c["count"]) for c in moved] == [("failure", -1, 1)]
    assert served.post({"id": "chatcmpl-unknown"}, "/v1/feedback").status_code == 404

    reply = device.json("chat", "hello", "--domain", "business")
    assert (reply["through"], reply["version"]) == ("gateway", "v1")
    assert "counted" in device.command("feedback", reply["id"], "--outcome", "success", "--feedback", "1").stdout


def test_nothing_that_is_asked_or_answered_is_kept(served, device) -> None:
    said = served.ask(SECRET, max_tokens=40).choices[0].message.content
    list(served.ask(SECRET, stream=True))
    served.post(body(messages=[{"role": "user", "content": SECRET * 400}]))
    device.command("chat", "-", stdin=SECRET)
    served.stop()
    for path in [*device.home.root.rglob("*")]:
        if path.is_file() and path.suffix != ".gguf":
            data = path.read_bytes()
            assert SECRET.encode() not in data, path
            assert said.encode() not in data, path


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"tools": []}, 400, "tools"),
        ({"grammar": "root ::= x"}, 400, "grammar"),
        ({"lora": [{"id": 0, "scale": 1}]}, 400, "lora"),
        ({"n": 2}, 400, "n"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 9}, 400, "temperature"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
        ({"metadata": {"domain": "my secret project"}}, 400, "metadata.domain"),
        ({"metadata": {"note": "x"}}, 400, "metadata.note"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages"),
        ({"model": "gpt-4"}, 404, None),
    ],
)
def test_what_is_not_on_the_list_is_refused_and_named(shared, change: dict, status: int, param: str | None) -> None:
    answer = shared.post(body(**change))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    if param is not None:
        assert error["param"] == param
    assert "secret project" not in answer.text


def test_a_stream_says_who_speaks_even_where_the_engine_does_not() -> None:
    """As llama.cpp does where its first token is only a part of a character (recorded from build b11549)."""
    asked = ChatRequest.model_validate_json(json.dumps(body(stream=True)))
    turn = Turn(SimpleNamespace(model=MODEL), None, asked)
    first, second = (
        turn._event(b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"%s"}}]}' % text, False)
        for text in (b"a", b"b")
    )
    deltas = [json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"] for event in (first, second)]
    assert deltas == [{"role": "assistant", "content": "a"}, {"content": "b"}]


def test_an_address_to_fetch_is_refused(shared) -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://192.0.2.1/x.png"}}
    assert shared.post(body(messages=[{"role": "user", "content": [picture]}])).status_code == 400
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    assert shared.post(body(messages=[{"role": "user", "content": parts}])).status_code == 200


def test_only_who_has_the_key_and_means_this_machine_gets_in(shared) -> None:
    assert shared.post(body(), Authorization="").status_code == 401
    assert shared.post(body(), Authorization="Bearer wrong").status_code == 401
    assert httpx.get(shared.url + "/v1/models").status_code == 401
    assert shared.post(body(), Host="evil.example").status_code == 400
    answer = shared.post(body(), Origin="https://evil.example")
    assert "access-control-allow-origin" not in answer.headers
    assert shared.device.home.key_file.stat().st_mode & 0o077 == 0
    long = httpx.post(
        shared.url + "/v1/chat/completions", content=b" " * 2_000_000, headers={"Authorization": f"Bearer {shared.key}"}
    )
    assert long.status_code == 413


def test_it_listens_on_loopback_only_and_is_fenced(shared) -> None:
    port = f"{shared.serving()['port']:04X}"
    listeners = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    assert [a for a in listeners if a.endswith(":" + port)] == ["0100007F:" + port]
    assert port not in Path("/proc/net/tcp6").read_text()
    for pid in shared.children().values():
        assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()


def test_more_requests_than_may_wait_are_told_to_come_back(shared) -> None:
    codes: list[int] = []

    def ask() -> None:
        codes.append(shared.post(body(max_tokens=100, temperature=1)).status_code)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 8
    assert shared.ask().usage.completion_tokens == 5


@pytest.fixture(scope="module")
def shared(models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One served device for the tests that do not change it."""
    from edge_fixtures_here import Device
    from edge_world import Publisher
    from sluice_edge.home import AgentConfig, Home, initialise

    folder = tmp_path_factory.mktemp("shared")
    publisher = Publisher(folder / "publisher")
    publisher.release("v1", models["one"])
    home = Home(folder / "home")
    initialise(home, AgentConfig(repository=publisher.uri, model=MODEL, threads=1, port=0), publisher.anchor, 0)
    device = Device(home)
    device.sync()
    with serving(device) as running:
        yield running


def test_a_new_version_takes_over_without_a_lost_request(served, device, publisher, models) -> None:
    stop, codes, versions = threading.Event(), [], []

    def load() -> None:
        while not stop.is_set():
            answer = served.post(body(max_tokens=30))
            codes.append(answer.status_code)
            versions.append(answer.headers.get("x-sluice-version"))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        publisher.release("v2", models["two"])
        device.sync()
        wait_for(lambda: "v2" in versions)
    finally:
        stop.set()
        thread.join()
    assert set(codes) == {200}
    assert versions == sorted(versions), "no answer of the old version after the first of the new one"
    wait_for(lambda: len(served.children()) == 2)


def test_an_engine_or_gateway_that_dies_is_started_again(served) -> None:
    for name in ("engine", "gateway"):
        old = served.children()[name]
        os.kill(old, signal.SIGKILL)
        wait_for(lambda old=old, name=name: served.children().get(name, old) != old)

        def answers() -> bool:
            try:
                return served.post(body()).status_code == 200
            except httpx.TransportError:
                return False

        wait_for(answers)


@pytest.fixture
def two_versions(device, publisher, models, server):
    publisher.release("v1", models["one"])
    device.sync()
    publisher.release("v2", models["two"])
    device.sync()
    return device


def test_a_file_that_rots_is_given_up_for_the_version_before_and_fetched_again(two_versions, server) -> None:
    model = two_versions.home.slots / "b" / "model.gguf"
    data = bytearray(model.read_bytes())
    data[1_000_000] ^= 1
    model.write_bytes(bytes(data))
    with serving(two_versions) as running:
        assert running.serving()["version"] == "v1"
        server.reset()
        assert two_versions.sync().bytes.pieces_fetched == 1
        wait_for(lambda: running.serving()["version"] == "v2")


def test_a_version_that_does_not_start_is_given_up_for_the_one_before(two_versions, models) -> None:
    """The file is the signed one as far as the agent knows, but the engine refuses it every time."""
    slot = two_versions.home.slots / "b"
    (slot / "model.gguf").write_bytes(models["broken"].read_bytes())
    digest = "sha256:" + hashlib.sha256(models["broken"].read_bytes()).hexdigest()
    version = json.loads((slot / "version.json").read_bytes()) | {"sha256": digest}
    (slot / "version.json").write_text(json.dumps(version))
    with serving(two_versions) as running:
        assert running.serving()["version"] == "v1"
    assert two_versions.json("status")["installed"]["version"] == "v1"


def test_it_can_fetch_its_first_model_by_itself(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    with serving(device, "--sync-every", "3600") as running:
        assert running.ask().usage.completion_tokens == 5


def test_stopping_leaves_nothing_behind(served, device) -> None:
    pids = [*served.children().values()]
    sockets = Path(served.serving()["socket"]).parent
    served.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not sockets.exists()
    assert not device.home.serving.exists()


def test_serve_says_what_is_in_its_way(served, device, make_device, server) -> None:
    twice = device.command("serve", check=False)
    assert twice.returncode == 1
    assert "runs in" in twice.stderr
    other = make_device(server.url, "other")
    empty = other.command("serve", check=False)
    assert empty.returncode == 1
    assert "fetch one with `sluice-edge sync`" in empty.stderr
    other.sync()
    taken = other.command("serve", "--port", served.url.rpartition(":")[2], check=False)
    assert taken.returncode == 1
    assert "choose another with --port" in taken.stderr
