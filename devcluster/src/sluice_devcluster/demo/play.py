"""The order of the story, and what must be true at each turn."""

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

from sluice_contracts.release import piece_path
from sluice_storage import join, open_store

from sluice_devcluster.demo.device import Device, Question, read_questions
from sluice_devcluster.demo.steps import StoryError
from sluice_devcluster.demo.story import POOL, QUESTIONS, RIGHT_AFTER, RIGHT_BEFORE, SLICE, Say, Story
from sluice_devcluster.demo.world import condition, is_true

CHANNEL = "stable"
SIGNING_SECRET = ("targets.pem", "snapshot.pem", "timestamp.pem", "root.json")
"""What the cluster may sign with. The root's private key stays with its owner."""


def play(story: Story) -> None:
    """Tell the whole story. Raises StoryError at the first turn that goes wrong."""
    key = _install(story)
    questions = _questions(story)
    slice_questions = [q for q in questions if q.domain == SLICE][:QUESTIONS]
    prompts = story.world.output / "questions.jsonl"

    v1 = _first_version(story)
    with story.screen.step("Device: first sync") as say:
        _first_sync(story, v1, say)
    with story.screen.step(f"Device: the owner asks about {SLICE}") as say:
        share = story.ask("v1", slice_questions, say, feedback=True)
        _expect(share <= RIGHT_BEFORE, f"v1 never saw {SLICE}, yet answered {share:.0%} of it")
    with story.screen.step("Device: counts leave, with consent") as say:
        story.device.run("signals", "consent", "on")
        sent = story.device.ask_json("signals", "export", "--upload", join(story.world.ground.storage, "signals"))[
            "batches"
        ]
        _expect(len(sent) > 0, "the device had no counts to send")
        say(f"{sum(batch['bytes'] for batch in sent)} bytes of counts, no text")

    v2 = _second_version(story, prompts, key)
    with story.screen.step("Device: update") as say:
        _update(story, v2, say)
    with story.screen.step(f"Device: {SLICE} again, offline") as say:
        share = story.ask("v2", slice_questions, say, feedback=False)
        _expect(share >= RIGHT_AFTER, f"v2 should answer {SLICE} on the device; {share:.0%} were right")
        proof = story.device.ask_json("verify-offline", deadline=180)
        _expect(bool(proof["proven"]), f"the offline proof failed: {proof}")
        say(f"{share:.0%} right; {proof['blocked']} of {proof['attempts']} attempts to reach out blocked")

    _waived(story, _bad_data(story), prompts, key)
    with story.screen.step("Device: a flipped bit is refused") as say:
        _flipped_bit(story, say)
    with story.screen.step("Lineage of what the device runs") as say:
        _lineage(story, v2, say)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StoryError(otherwise)


def _install(story: Story) -> str:
    world, screen = story.world, story.screen
    if world.ground.local:
        with screen.step("Local Kubernetes") as say:
            say("etcd, API server, kubelet, containerd, CoreDNS, KubeRay stand-in, Cloud Storage emulator")
            world.run(["sluice-dev", "up"], deadline=300)
    else:
        with screen.step("Existing Kubernetes") as say:
            _expect_kuberay(story)
            say("it answers, and KubeRay's definitions are there")
    with screen.step("Operator, by Helm") as say:
        sha = world.run(["git", "rev-parse", "HEAD"], check=False).stdout.strip() or "unknown"
        world.run(
            [
                *(world.helm, "upgrade", "--install", "sluice", "charts/sluice", "-n", "sluice-system"),
                *("--create-namespace", "-f", world.ground.values, "--set-string", f"gitSha={sha}"),
                *("--wait", "--timeout", "120s"),
            ],
            deadline=180,
        )
        say("ready")
    with screen.step("Keys and secrets") as say:
        keys = world.output / "signing-keys"
        world.run(["sluice-train", "publish", "init", "--repository", world.ground.releases, "--keys", keys])
        key = secrets.token_urlsafe(24)
        world.run([world.kubectl, "apply", "-f", story.example_path("namespace.yaml")])
        world.apply(
            _secret(story, f"{POOL}-keys", {"demo": key}),
            _secret(
                story,
                "sluice-signing",
                {name: (keys / name).read_text() for name in SIGNING_SECRET},
            ),
        )
        say("a signing root that stays outside the cluster; role keys and an API key in Secrets")
    return key


def _expect_kuberay(story: Story) -> None:
    kinds = ["rayjobs.ray.io", "rayservices.ray.io"]
    found = story.world.run([story.world.kubectl, "get", "crd", *kinds], deadline=60, check=False)
    last = (found.stderr.strip() or "no answer").splitlines()[-1]
    _expect(found.returncode == 0, f"the cluster of KUBECONFIG lacks KubeRay ({last}); install it, then start again")


def _secret(story: Story, name: str, data: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": story.world.namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


def _questions(story: Story) -> list[Question]:
    """What people ask: held-out rows of a dataset of its own, never trained on."""
    with story.screen.step("Questions people will ask") as say:
        built = story.build_dataset("questions", say)
        lines = open_store(built["uri"]).read("test.jsonl").decode().splitlines()
        (story.world.output / "questions.jsonl").write_text("\n".join(lines) + "\n")
        return read_questions(lines, task="intent")


def _first_version(story: Story) -> str:
    with story.screen.step(f"v1: dataset without {SLICE}") as say:
        dataset = story.build_dataset("v1", say)
    with story.screen.step("v1: train, evaluate, quantise") as say:
        v1 = story.expect_trained(story.await_training(story.train("v1", dataset), say))
    with story.screen.step("v1: serve on vLLM") as say:
        story.serve(v1, say)
        story.facts.versions[v1]["canary"] = "first version"
    with story.screen.step("v1: sign and publish") as say:
        story.allow_publishing(v1)
        story.publish(v1, say)
    return v1


def _second_version(story: Story, prompts: Path, key: str) -> str:
    with story.screen.step("v2: dataset weighed by signals") as say:
        dataset = story.build_dataset("v2", say, signals=True)
        _expect(bool(dataset.get("signalBatches")), "the device's signals did not reach the dataset")
    with story.screen.step("v2: fine-tune, evaluate, quantise") as say:
        v2 = story.expect_trained(story.await_training(story.train("v2", dataset), say))
    with story.screen.step("v2: canary under load") as say:
        record = story.roll_out(v2, say, questions=prompts, key=key)
        _expect(record["outcome"] == "Promoted", f"v2 should have been promoted: {record}")
        story.facts.versions[v2]["canary"] = "promoted"
    with story.screen.step("v2: sign and publish") as say:
        story.allow_publishing(v2)
        story.publish(v2, say)
    return v2


def _first_sync(story: Story, version: str, say: Say) -> None:
    device, world = story.device, story.world
    device.run(
        *("init", "--repository", _repository_url(story), "--model", POOL, "--channel", CHANNEL),
        *("--root", world.output / "signing-keys" / "root.json", "--upload-endpoint", world.ground.storage_url),
    )
    synced = story.facts.syncs["first"] = device.sync()
    story.facts.versions[version]["device"] = variant = _installed(story, version)
    say(f"{variant}, {synced['bytes']['pieces']:,} bytes in {synced['bytes']['piecesFetched']} pieces")


def _update(story: Story, version: str, say: Say) -> None:
    synced = story.facts.syncs["update"] = story.device.sync()
    variant = _installed(story, version)
    again = story.facts.syncs["nothing new"] = story.device.sync()
    _expect(again["bytes"]["pieces"] == 0, f"a sync with nothing new moved {again['bytes']['pieces']} bytes of pieces")
    story.facts.versions[version]["device"] = variant
    moved = synced["bytes"]
    say(f"{moved['piecesFetched']} pieces fetched, {moved['reused']} reused; again: metadata only")


def _installed(story: Story, version: str) -> str:
    """The quantisation the device runs, if it runs `version`. Raises StoryError otherwise."""
    installed = story.device.status().get("installed") or {}
    _expect(installed.get("version") == version, f"the device should run {version}, not {installed.get('version')}")
    return str(installed["quantization"])


def _bad_data(story: Story) -> str:
    """v3 is refused. v4 trains beside it, as in a cluster of several teams; the name of its run."""
    with story.screen.step("v3: bad data") as say:
        v3, v4 = (story.train(version, story.build_dataset(version, say)) for version in ("v3", "v4"))
        run = story.await_training(v3, say)
        failed = condition(run, "Evaluated")
        _expect(is_true(run, "Stalled") and failed.get("status") == "False", f"the gate should have refused {v3}")
        _expect(story.world.get("ModelVersion", v3) is None, f"{v3} was refused and must not be a ModelVersion")
        say(failed["message"])
    return v4


def _waived(story: Story, run: str, prompts: Path, key: str) -> None:
    with story.screen.step("v4: gate waived by name") as say:
        v4 = story.expect_trained(story.await_training(run, say))
        story.allow_publishing(v4)
    with story.screen.step("v4: canary under load") as say:
        record = story.roll_out(v4, say, questions=prompts, key=key)
        _expect(record["outcome"] == "RolledBack", f"v4 should have been rolled back: {record}")
        story.facts.versions[v4]["canary"] = "rolled back"
        version = story.world.get("ModelVersion", v4)
        _expect(not is_true(version, "Published"), f"{v4} was rolled back and must never be published")
        say(str(record.get("message", "")))


def _flipped_bit(story: Story, say: Say) -> None:
    """Serve the repository from a copy with one bit of one piece flipped; a fresh device must refuse it."""
    world = story.world
    copy = world.output / "tampered-repository"
    source = open_store(world.ground.releases)
    for name in source.list():
        source.download(name, copy / name)
    release = json.loads(next((copy / "targets" / CHANNEL).glob(f"*.{POOL}.json")).read_text())
    piece = copy / piece_path(release["variants"][0]["pieces"][0])
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 1
    piece.write_bytes(bytes(data))
    victim = Device(world, world.output / "second-device", story.device.port + 1)
    variant = release["variants"][0]["quantization"]
    victim.run(
        *("init", "--repository", copy.as_uri(), "--model", POOL, "--channel", CHANNEL, "--variant", variant),
        *("--root", world.output / "signing-keys" / "root.json"),
    )
    result = victim.run("sync", check=False)
    _expect(result.returncode != 0, "the agent accepted a file with a flipped bit")
    story.facts.refusal = result.stderr.strip().splitlines()[-1].removeprefix("error: ")
    _expect("piece" in story.facts.refusal, f"the refusal should name the piece: {story.facts.refusal}")
    shutil.rmtree(copy)
    say(story.facts.refusal)


def _lineage(story: Story, version: str, say: Say) -> None:
    world = story.world
    receipt = world.output / "device.json"
    receipt.write_text(json.dumps(story.device.status()))
    command = ["sluice", "lineage", version, "-n", world.namespace, "--device", str(receipt)]
    story.facts.lineage = world.json([*command, "-o", "json"])
    story.facts.lineage_text = world.run(command).stdout
    seen = {
        story.facts.versions[version]["lineage"],
        story.facts.lineage["lineage"],
        story.device.status()["installed"]["lineage"],
    }
    _expect(len(seen) == 1, f"one lineage id should join all of it; found {seen}")
    say(seen.pop())


def _repository_url(story: Story) -> str:
    return f"{story.world.ground.storage_url}/{story.world.ground.releases.removeprefix('gs://')}"
