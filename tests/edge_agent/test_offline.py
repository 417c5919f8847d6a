"""The proof that answers need no network, and that it would notice one."""

import dataclasses
import subprocess

import pytest
from sluice_edge.offline.reach import Attempt, attempts
from sluice_edge.offline.verify import Proof, verify_offline


@pytest.fixture
def proof(device, publisher, models, server) -> Proof:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode and (
        subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode
    ):
        pytest.skip("this machine allows no network namespaces")
    publisher.release("v1", models["one"])
    device.sync()
    return verify_offline(device.home)


def test_it_answers_where_there_is_no_network(proof: Proof) -> None:
    assert proof.problems == []
    assert proof.inside_interfaces == ["lo"]
    assert len(proof.inside) == 5
    assert not any(t.reached for t in proof.inside)
    assert proof.tokens > 0
    assert proof.engine_fence["seccomp"]
    assert proof.wire()["blocked"] == proof.wire()["attempts"] == 5


def test_the_same_attempts_reach_out_without_the_fence(server) -> None:
    """The negative control: outside, the listener and the repository are reached by the very same code."""
    port = int(server.url.rpartition(":")[2])
    free = {t.what: t for t in attempts(port, ("127.0.0.1", port))}
    assert free["TCP to a listener on this machine"].reached
    assert free["TCP to the repository"].reached


def test_a_leak_or_a_dead_control_is_no_proof(proof: Proof) -> None:
    leak = Attempt("UDP (DNS)", "192.0.2.1:53", "sent", True)
    assert "inside, UDP (DNS)" in dataclasses.replace(proof, inside=[*proof.inside, leak]).problems[0]
    assert "eth0" in dataclasses.replace(proof, inside_interfaces=["lo", "eth0"]).problems[0]
    dead = dataclasses.replace(proof.control, reached=False)
    assert "prove nothing" in dataclasses.replace(proof, control=dead).problems[0]
    assert "no answer" in dataclasses.replace(proof, answer=" \n").problems[0]


def test_the_proof_is_not_counted_as_use(proof: Proof, device) -> None:
    assert device.json("signals", "show")["cells"] == []
    printed = device.command("verify-offline").stdout
    assert "proven: this device answers without any network" in printed
    assert device.json("verify-offline", "--question", "What now?")["proven"] is True
