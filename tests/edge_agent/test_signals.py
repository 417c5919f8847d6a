"""What may leave a device: counts, with consent, once."""

import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_contracts.names import Domain, Task
from sluice_contracts.signal import Outcome, SignalBatch
from sluice_edge.cli import app
from sluice_edge.errors import ConfigurationError, FetchError
from sluice_edge.pull.upload import upload
from sluice_edge.signals import Observation, Signals, latency_bucket, token_bucket
from typer.testing import CliRunner

LINEAGE = "a" * 64


def seen(outcome: Outcome = Outcome.SUCCESS, domain: Domain = Domain.LEADERSHIP) -> Observation:
    return Observation(LINEAGE, domain, Task.INTENT, outcome, 0.3, 20)


@pytest.fixture
def signals(device) -> Signals:
    return Signals(device.home)


def test_nothing_leaves_without_consent(device, signals, tmp_path) -> None:
    signals.record("1", seen())
    refused = device.command("signals", "export", "--out", str(tmp_path / "batch.json"), check=False)
    assert refused.returncode == 1
    assert "signals consent on" in refused.stderr
    assert not (tmp_path / "batch.json").exists()
    device.command("signals", "consent", "on")
    device.command("signals", "consent", "off")
    assert device.command("signals", "export", "--out", str(tmp_path / "batch.json"), check=False).returncode == 1


def test_a_batch_holds_counts_and_nothing_else(device, signals, tmp_path) -> None:
    for number in range(3):
        signals.record(f"answer-{number}", seen())
    signals.record("answer-3", seen(Outcome.FAILURE))
    device.command("signals", "consent", "on")
    out = tmp_path / "batch.json"
    device.command("signals", "export", "--out", str(out))
    batch = SignalBatch.model_validate_json(out.read_bytes())
    assert sorted((c.outcome.value, c.count) for c in batch.cells) == [("failure", 1), ("success", 3)]
    assert batch.day == datetime.now(UTC).strftime("%Y-%m-%d")
    text = out.read_text()
    for private in ("answer-", json.loads(device.home.device_file.read_bytes())["id"]):
        assert private not in text
    assert "nothing was counted" in device.command("signals", "export", "--out", str(out)).stdout


def test_feedback_moves_a_count_and_the_last_word_holds(signals) -> None:
    signals.record("1", seen())
    signals.record("2", seen())
    signals.feedback("1", -1, Outcome.FAILURE)
    signals.feedback("1", 1, None)
    signals.feedback("1", -1, Outcome.FAILURE)
    cells = {(c.outcome, c.feedback): c.count for c in signals.cells()}
    assert cells == {(Outcome.SUCCESS, 0): 1, (Outcome.FAILURE, -1): 1}
    with pytest.raises(ConfigurationError, match="no answer with the id"):
        signals.feedback("3", 0, None)


@settings(deadline=None, max_examples=20)  # each example makes a database
@given(st.lists(st.tuples(st.sampled_from(Outcome), st.sampled_from(Domain)), max_size=12), st.data())
def test_no_feedback_changes_how_many_were_counted(tmp_path_factory, answers, data) -> None:
    from sluice_edge.home import Home

    signals = Signals(Home(tmp_path_factory.mktemp("home")))
    for number, (outcome, domain) in enumerate(answers):
        signals.record(str(number), seen(outcome, domain))
    for number in range(len(answers)):
        signals.feedback(str(number), data.draw(st.integers(-1, 1)), data.draw(st.sampled_from(Outcome)))
    assert sum(c.count for c in signals.cells()) == len(answers)


def test_a_batch_that_did_not_arrive_is_sent_again_under_its_id(device, signals) -> None:
    signals.record("1", seen())
    signals.consent = True
    (first,) = signals.pack("support-bot")
    signals.record("2", seen())
    both = signals.pack("support-bot")
    assert first in both
    assert len(both) == 2
    assert signals.cells() == []
    counts = [sum(c.count for c in SignalBatch.model_validate_json(p.read_bytes()).cells) for p in both]
    assert counts == [1, 1]


class Bucket:
    """A local stand-in for the JSON API's upload call; the real emulator is used in test_gcs.py."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fail = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                status = 200
                if outer.fail:
                    outer.fail -= 1
                    status = 503
                elif self.path in outer.objects:
                    status = 412 if self.command == "POST" else 409
                else:
                    outer.objects[self.path] = data
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_PUT

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def bucket():
    bucket = Bucket()
    thread = threading.Thread(target=bucket.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield bucket
    bucket.server.shutdown()
    thread.join()
    bucket.server.server_close()


@pytest.mark.parametrize("kind", ["gs", "put"])
def test_an_upload_is_tried_again_and_counts_once(bucket, fast_retries, tmp_path, kind: str) -> None:
    batch = tmp_path / "abc.json"
    batch.write_bytes(b"{}")
    destination = "gs://sluice/signals" if kind == "gs" else bucket.url + "/inbox"
    bucket.fail = 2
    for _ in range(2):
        upload(batch, destination, endpoint=bucket.url, proxy=None, token=None)
    (path,) = bucket.objects
    if kind == "gs":
        assert path == "/upload/storage/v1/b/sluice/o?uploadType=media&ifGenerationMatch=0&name=signals%2Fabc.json"
    else:
        assert path == "/inbox/abc.json"


def test_an_upload_that_cannot_be_made_keeps_the_batch(device, signals, bucket, fast_retries) -> None:
    signals.record("1", seen())
    signals.consent = True
    args = ["signals", "export", "--home", str(device.home.root), "--upload", "http://127.0.0.1:9/x"]
    refused = CliRunner().invoke(app, args)
    assert refused.exit_code == 1
    assert "try again later" in refused.stderr
    assert len(list(device.home.outbox.iterdir())) == 1
    sent = device.json("signals", "export", "--upload", bucket.url + "/in")
    assert [b["uri"].rpartition("/")[0] for b in sent["batches"]] == [bucket.url + "/in"]
    assert list(device.home.outbox.iterdir()) == []


def test_an_upload_to_a_strange_place_is_refused(tmp_path, fast_retries) -> None:
    batch = tmp_path / "abc.json"
    batch.write_bytes(b"{}")
    with pytest.raises(ConfigurationError, match="use gs://"):
        upload(batch, "s3://x", endpoint="http://127.0.0.1:9", proxy=None, token=None)
    with pytest.raises(FetchError, match="try again later"):
        upload(batch, "gs://x/y", endpoint="http://127.0.0.1:9", proxy=None, token=None)
    assert upload(batch, f"file://{tmp_path}/out", endpoint="", proxy=None, token=None).endswith("/out/abc.json")


@given(st.floats(0, 1e6), st.integers(0, 10**6))
def test_buckets_are_ordered(seconds: float, tokens: int) -> None:
    order = ["under-200ms", "under-1s", "under-5s", "over-5s"]
    assert order.index(latency_bucket(seconds)) <= order.index(latency_bucket(seconds * 2))
    sizes = ["under-16", "under-64", "under-256", "over-256"]
    assert sizes.index(token_bucket(tokens)) <= sizes.index(token_bucket(tokens * 2))
