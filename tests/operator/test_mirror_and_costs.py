"""What the gateways are told of mirroring and prices, and what status says of a look without counts."""

import asyncio
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from sluice_contracts.analysis import AnalysisSnapshot, VersionCounts
from sluice_contracts.inference_pool import ServedVersion
from sluice_contracts.routing import RoutingTable
from sluice_devcluster.ports import free_port
from sluice_operator.children.gateway import gateway_objects
from sluice_operator.children.routes import mirror_route, price
from sluice_operator.inference_pool import evidence
from sluice_operator.inference_pool.evidence import Evidence, add_up
from sluice_operator.prices import Prices
from sluice_operator.settings import Prometheus, SettingsError, from_environment

from tests.operator.test_rollout_vocabulary import Canary

L4 = Prices("EUR", {"nvidia-l4": Decimal("0.72")})
NEEDED = {
    "SLUICE_NAMESPACE": "s",
    "SLUICE_STORAGE_URI": "gs://sluice",
    **{f"SLUICE_IMAGE_{name}": "x" for name in ("TRAINER", "SERVE", "GATEWAY", "PUBLISHER")},
}


def candidate(make: Any) -> ServedVersion:
    return ServedVersion(model_version="v2", lineage="l", manifest_digest=make.digest, ray_service="chat-2")


def test_a_version_costs_its_own_token_prices_or_the_pools_or_its_place_in_the_machine(make: Any) -> None:
    hardware = {"accelerator": "nvidia-l4", "count": 2}
    spec = make.pool_spec(hardware=hardware, limits={"inFlightPerReplica": 4})
    place = price(spec, "v1", L4)
    assert place is not None
    assert (place.slot_second, place.output_token) == (pytest.approx(2 * 0.72 / 3600 / 4), 0)
    assert price(spec, "v1", Prices()) is None
    own = {"modelVersion": "v2", "prompt": "0.5", "output": "2"}
    spec = make.pool_spec(hardware=hardware, costs={"tokens": {"prompt": "0.075", "output": "0.3"}, "versions": [own]})
    tokens, others = price(spec, "v1", L4), price(spec, "v2", L4)
    assert tokens is not None
    assert others is not None
    assert (tokens.prompt_token, tokens.output_token, tokens.slot_second) == (0.075e-6, 0.3e-6, 0)
    assert (others.prompt_token, others.output_token) == (0.5e-6, 2e-6)


def test_gateways_mirror_to_the_candidate_while_it_has_traffic(make: Any) -> None:
    mirror = {"percent": 5, "maxInFlight": 3, "timeout": "30s", "judge": {"entryPoint": "rubric", "timeout": "2s"}}
    canary = Canary(make, mirror=mirror)

    def table(done: Any) -> RoutingTable:
        routes = next(a.object for a in done.apply if a.object["metadata"]["name"] == "chat-routes")
        return RoutingTable.model_validate(json.loads(routes["data"]["routes.json"]))

    found = table(canary.look()).mirror
    assert found is not None
    assert (found.percent, found.candidate, found.max_in_flight, found.timeout_seconds) == (5, "v2", 3, 30)
    assert found.judge is not None
    assert (found.judge.entry_point, found.judge.url, found.judge.timeout_seconds) == ("rubric", None, 2)
    engine = canary.status.candidate.ray_service if canary.status.candidate else ""
    canary.engines[engine] = replace(canary.engines[engine], ready=False)
    assert table(canary.look()).mirror is None, "a version that is not ready gets no copies"
    assert mirror_route(make.pool_spec(), candidate(make)) is None


def test_the_judges_token_is_mounted_where_the_gateway_looks_for_it(make: Any) -> None:
    def deployment(judge: dict[str, Any]) -> dict[str, Any]:
        spec = make.pool_spec(rollout={"mirror": {"percent": 1, "judge": judge}})
        objects = [obj for _, obj in gateway_objects(make.meta("chat"), spec, make.settings())]
        return next(obj for obj in objects if obj["kind"] == "Deployment")["spec"]["template"]["spec"]

    pod = deployment({"url": "http://judge", "tokenSecretRef": {"name": "judge", "key": "token"}})
    env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
    assert env["SLUICE_JUDGE_TOKEN_FILE"] == "/etc/sluice/judge/token"
    assert {"name": "judge", "secret": {"secretName": "judge"}} in pod["volumes"]
    pod = deployment({"url": "http://judge"})
    assert not [e for e in pod["containers"][0]["env"] if e["name"] == "SLUICE_JUDGE_TOKEN_FILE"]


def test_a_look_without_counts_says_why_in_status_and_in_an_event(make: Any) -> None:
    canary = Canary(make)
    canary.answers(10)
    canary.look()
    assert canary.status.analysis_error == ""
    told = canary.look(found=Evidence(trouble="Prometheus at http://p:9090: no answer within 5s"))
    assert canary.status.analysis_error == "Prometheus at http://p:9090: no answer within 5s"
    (event,) = [e for e in told.events if e.reason == "NoAnalysisData"]
    assert event.message == "no counts of this rollout: Prometheus at http://p:9090: no answer within 5s"
    assert all(v.verdict == "undecided" for v in canary.status.verdicts)
    ready = next(c for c in canary.status.conditions if c.type == "Ready")
    assert "not all counts: Prometheus at http://p:9090" in ready.message
    canary.look()
    assert canary.status.analysis_error == ""


def test_gateways_that_are_not_heard_are_counted() -> None:
    assert add_up("w", [], 0).trouble == "no gateway pod is ready"
    assert add_up("w", [], 2).trouble == "2 of 2 ready gateways did not answer on port 8081"


def test_the_operator_is_told_of_the_prometheus_by_its_environment(tmp_path: Path) -> None:
    assert from_environment(NEEDED).prometheus == Prometheus()
    token = str(tmp_path / "token")
    told = {"SLUICE_PROMETHEUS_URL": "https://prometheus:9090/", "SLUICE_PROMETHEUS_TOKEN_FILE": token}
    assert from_environment(NEEDED | told).prometheus == Prometheus("https://prometheus:9090", Path(token))
    with pytest.raises(SettingsError, match="SLUICE_PROMETHEUS_URL is 'prometheus:9090'"):
        from_environment(NEEDED | {"SLUICE_PROMETHEUS_URL": "prometheus:9090"})


@pytest.mark.parametrize("much", [False, True])
async def test_counts_that_come_in_pieces_are_read_whole_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, much: bool
) -> None:
    snapshot = AnalysisSnapshot(
        instance="i", window="w", since="2026-11-21T12:00:00Z", versions={"v1": VersionCounts()}
    )
    body = snapshot.model_dump_json(by_alias=True).encode()

    async def analysis(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (body[: len(body) // 2], body[len(body) // 2 :], b" " * (evidence.LIMIT_BYTES if much else 1)):
            await response.write(piece)
            await asyncio.sleep(0.01)  # so that the pieces arrive one by one
        return response

    app = web.Application()
    app.router.add_get("/analysis", analysis)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    monkeypatch.setattr(evidence, "INTERNAL_PORT", port)
    async with aiohttp.ClientSession() as http:
        found = await evidence._ask(http, "127.0.0.1")
    await runner.cleanup()
    assert (found is None) == much
