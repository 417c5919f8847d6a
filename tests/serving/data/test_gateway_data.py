"""Keys, budgets, contexts and records as a client meets them: a gateway, an engine's stand-in, a real database."""

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt as pyjwt
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sluice_contracts.routing import MirrorRoute, RoutingLimits
from sluice_devcluster.ports import free_port
from sluice_serving.gateway.data_command import app
from sluice_serving.gateway.database import open_database
from sluice_serving.gateway.jwt import JwtSettings
from sluice_serving.gateway.main import serve
from sluice_serving.gateway.settings import Settings, SettingsError
from typer.testing import CliRunner

USER, ADMIN = "sk-the-application", "sk-the-officer"
PIN = "my pin is 47zz11"
ONE_DATABASE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what no database decides."""
SHARED_DATABASE = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def tenant_file(**more: Any) -> bytes:
    def digest(key: str) -> str:
        return "sha256:" + hashlib.sha256(key.encode()).hexdigest()

    keys = [{"id": "app", "digest": digest(USER)}, {"id": "officer", "digest": digest(ADMIN), "admin": True}]
    return json.dumps({"keys": keys} | more).encode()


@dataclass
class Answer:
    status: int
    headers: Any
    content: Any


class Place:
    """A gateway with one tenant, and what is needed to look behind it."""

    def __init__(self, gateway: Any, engine: Any, backend: Any, url: str) -> None:
        self.gateway = gateway
        self.engine = engine
        self.backend = backend
        self.url = url

    async def ask(self, *, key: str = USER, headers: dict[str, str] | None = None, **body: Any) -> Any:
        """One chat; returns the response, read to its end."""
        async with self.gateway.chat(key=key, headers=headers, **body) as got:
            return Answer(got.status, got.headers, await got.json())

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str = USER, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        sent = {"authorization": f"Bearer {key}"} | (headers or {})
        request = self.gateway.session.request(method, f"{self.gateway.url}{path}", json=body, headers=sent)
        async with request as got:
            text = await got.text()
            return (
                got.status,
                json.loads(text) if got.content_type == "application/json" and text else text,
                got.headers,
            )

    async def rows(self, table: str = "ai_interactions", order: str = "time") -> list[dict[str, Any]]:
        database = open_database(self.url)
        async with database.transaction() as session:
            found = await session.fetch(f"SELECT * FROM {table} ORDER BY {order}")
        await database.close()
        return found

    async def written(self, count: int, table: str = "ai_interactions") -> list[dict[str, Any]]:
        """The rows, once there are so many."""
        deadline = time.monotonic() + 30
        while len(found := await self.rows(table)) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} rows\n{await self.gateway.metrics()}"
            await asyncio.sleep(0.05)
        return found

    async def standing(self) -> float:
        """Requests that run or wait."""
        lines = (await self.gateway.metrics()).splitlines()
        return sum(float(n.split()[-1]) for n in lines if n.startswith(("sluice_in_flight{", "sluice_waiting{")))

    def tenant(self, **more: Any) -> None:
        path = self.gateway.settings.keys_dir / "acme"
        path.with_name(".new").write_bytes(tenant_file(**more))
        path.with_name(".new").replace(path)


@pytest.fixture
async def place(
    start_gateway: Any, engines: Any, served: Any, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Starts a place; keyword arguments are the tenant's, but for `settings` and `backend`."""

    monkeypatch.setattr("sluice_serving.gateway.interactions.FLUSH_SECONDS", 0.05)
    monkeypatch.setattr("sluice_serving.gateway.keys.POLL_SECONDS", 0.1)

    async def start(
        *, settings: dict[str, Any] | None = None, backend: dict[str, Any] | None = None, **tenant: Any
    ) -> Place:
        keys, secret = tmp_path / "tenants", tmp_path / "pseudonym.key"
        keys.mkdir()
        (keys / "acme").write_bytes(tenant_file(**tenant))
        secret.write_text("0123456789abcdef0123")
        chosen = {"keys_dir": keys, "database_url": database_url, "pseudonym_key_file": secret,
                  "spool_dir": tmp_path / "spool"} | (settings or {})  # fmt: skip
        gateway = await start_gateway(**chosen)
        engine = await engines("a very private answer")
        routed = served(engine, **(backend or {}))
        await gateway.route(routed)
        return Place(gateway, engine, routed, chosen["database_url"])

    return start


async def test_a_context_is_added_named_in_the_answer_and_written_to_the_record(
    place: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    here = await place(contexts=True)
    status, made, headers = await here.call("POST", "/v1/contexts", {"user": "jane/doe", "content": "Likes tea."})
    assert (status, made["version"]) == (201, 1)
    tag = headers["etag"].strip('"')
    assert tag == f"{made['reference']}.1"
    assert (await here.call("GET", "/v1/contexts/jane/doe"))[1] == made
    got = await here.ask(user="jane/doe")
    assert got.headers["x-sluice-context"] == tag
    assert here.engine.requests[-1]["messages"][0] == {"role": "system", "content": "Likes tea."}
    client = here.gateway.openai(USER)
    stream = await client.chat.completions.create(
        model="support-bot", messages=[{"role": "user", "content": PIN}], user="jane/doe", stream=True
    )
    assert [chunk async for chunk in stream]
    assert (await here.ask(user="john")).headers["x-sluice-context"] == "none"
    declined = await here.ask(user="jane/doe", headers={"x-sluice-context": "none"})
    assert "x-sluice-context" not in declined.headers
    assert len(here.engine.requests[-1]["messages"]) == 1
    rows = await here.written(4)
    assert [r["context_reference"] for r in rows] == [tag, tag, None, None]
    for private in ("Likes tea", "jane", "47zz11", USER):
        assert private not in caplog.text + str(rows)


async def test_contexts_are_replaced_by_version_and_bounded_and_errors_name_the_field(place: Any) -> None:
    here = await place(contexts=True)
    _, _, headers = await here.call("POST", "/v1/contexts", {"user": "jane", "content": "one"})
    first = {"if-match": headers["etag"]}
    at = "/v1/contexts/jane"
    assert (await here.call("PUT", at, {"content": "two"}))[1]["error"]["code"] == "precondition_required"
    status, updated, headers = await here.call("PUT", at, {"content": "two"}, headers=first)
    assert (status, updated["version"], updated["content"]) == (200, 2, "two")
    expected = {
        ("PUT", at, "three"): 412,
        ("DELETE", at, None): 412,
        ("PUT", "/v1/contexts/nobody", "x"): 404,
        ("GET", "/v1/contexts/nobody", None): 404,
        ("PATCH", at, None): 405,
        ("GET", "/v1/contexts", None): 405,
        ("PUT", at, "x" * 8193): 400,
        ("PUT", at, ""): 400,
        ("PUT", at, 7): 400,
    }
    for (method, path, content), status in expected.items():
        body = None if content is None else {"content": content}
        got, answer, _ = await here.call(method, path, body, headers=first)
        assert got == status, (method, path, answer)
        assert status != 400 or answer["error"]["param"] == "content"
    assert (await here.call("POST", "/v1/contexts", {"user": "jane", "content": "again"}))[0] == 409
    assert (await here.call("POST", "/v1/contexts", {"user": "a\nb", "content": "x"}))[0] == 400
    big = await here.call("POST", "/v1/contexts", {"user": "jane", "content": "x" * 70_000})
    assert (big[0], big[1]["error"]["code"]) == (413, "request_too_large")
    assert (await here.call("DELETE", at, headers={"if-match": headers["etag"]}))[0] == 204
    assert (await here.call("GET", at))[0] == 404


@ONE_DATABASE
async def test_contexts_are_the_tenants_choice_and_nobody_elses_business(place: Any) -> None:
    here = await place(contexts=False)
    status, answer, _ = await here.call("POST", "/v1/contexts", {"user": "jane", "content": "x"})
    assert (status, answer["error"]["code"]) == (403, "contexts_disabled")
    assert (await here.call("GET", "/v1/contexts/jane", key="sk-stolen"))[0] == 401
    assert "x-sluice-context" not in (await here.ask(user="jane")).headers


async def test_content_is_kept_only_where_the_tenant_asked_for_it(place: Any) -> None:
    here = await place()
    await here.ask(messages=[{"role": "user", "content": PIN}])
    await here.written(1)
    assert await here.rows("ai_interaction_content") == []
    here.tenant(keepContent=True)
    asked: Any = [{"role": "user", "content": PIN}]
    async with asyncio.timeout(30):
        while not await here.rows("ai_interaction_content"):
            await here.ask(messages=asked, user="jane")
            await asyncio.sleep(0.1)
    streamed: Any = [{"role": "user", "content": f"{PIN}, streamed"}]
    client = here.gateway.openai(USER)
    stream = await client.chat.completions.create(model="support-bot", messages=streamed, user="kim", stream=True)
    assert [chunk async for chunk in stream]
    async with asyncio.timeout(30):
        while json.loads((kept := await here.rows("ai_interaction_content"))[-1]["prompt"]) != streamed:
            await asyncio.sleep(0.05)
    assert json.loads(kept[0]["prompt"]) == asked
    for row in (kept[0], kept[-1]):
        assert row["answer"].split() == ["a", "very", "private", "answer"]
    assert "47zz11" not in str(await here.rows())


@ONE_DATABASE
async def test_a_client_can_ask_for_no_record_at_all(place: Any) -> None:
    here = await place(keepContent=True, budgets=[{"window": "month", "requests": 3}])
    assert (await here.ask(headers={"x-sluice-record": "none"})).status == 200
    got = await here.ask(headers={"x-sluice-record": "non"})
    assert got.status == 400  # a misspelt refusal is not consent
    await here.ask(user="seen")
    assert len(await here.written(1)) == 1
    metrics = await here.gateway.metrics()
    assert "sluice_interactions_declined_total 1.0" in metrics
    assert (await here.ask()).status == 200
    assert (await here.ask()).status == 429  # what has no record counts all the same


@ONE_DATABASE
async def test_budgets_refuse_with_the_time_to_come_again(place: Any) -> None:
    here = await place(budgets=[{"window": "month", "tokens": 20}])
    assert (await here.ask()).status == 200  # 7 + 4 tokens
    assert (await here.ask()).status == 200
    got = await here.ask()
    assert got.status == 429
    assert int(got.headers["retry-after"]) > 0
    assert got.content["error"]["code"] == "rate_limit_exceeded"
    assert got.headers["x-should-retry"] == "false"  # the month has days to go: OpenAI's clients are to give up
    assert 'sluice_budget_refusals_total{budget="tokens"} 1.0' in await here.gateway.metrics()
    with pytest.raises(openai.RateLimitError):
        await here.gateway.openai(USER).chat.completions.create(
            model="support-bot", messages=[{"role": "user", "content": "hi"}]
        )


@ONE_DATABASE
async def test_money_is_spent_by_the_versions_price(place: Any) -> None:
    priced = {"price": {"promptToken": 0.001, "outputToken": 0.002}}
    here = await place(budgets=[{"window": "month", "money": "0.02"}], backend=priced)
    assert [(await here.ask()).status for _ in range(3)] == [200, 200, 429]  # 1.5 cents each
    assert (await here.written(2))[0]["cost"] == pytest.approx(0.015)


@ONE_DATABASE
async def test_leaving_early_is_not_free(place: Any) -> None:
    here = await place(budgets=[{"window": "month", "tokens": 10}])
    here.engine.word_delay = 0.2
    async with here.gateway.chat(key=USER, stream=True, messages=[{"role": "user", "content": "x" * 40}]) as got:
        await got.content.readany()
    async with asyncio.timeout(30):
        while (await here.ask()).status != 429:
            await asyncio.sleep(0.05)
    rows = await here.written(1)
    assert rows[0]["outcome"] == "client_closed"


@ONE_DATABASE
async def test_streams_at_once_spend_exactly_what_they_take_and_mirrored_copies_nothing(
    place: Any, engines: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_serving.gateway.budgets.SYNC_SECONDS", 0.05)
    here = await place(budgets=[{"window": "month", "requests": 6, "tokens": 10**6}])
    candidate = await engines()
    candidate.status, here.engine.word_delay = 500, 0.02
    mirror = MirrorRoute(percent=100, candidate="v2", max_in_flight=64)
    limits = RoutingLimits(in_flight_per_replica=64)
    await here.gateway.route(here.backend, served(candidate, "v2", 0), mirror=mirror, limits=limits)

    async def one() -> int:
        async with here.gateway.chat(key=USER, stream=True) as got:
            await got.read()
            return int(got.status)

    assert sorted(await asyncio.gather(*(one() for _ in range(10)))) == [200] * 6 + [429] * 4
    async with asyncio.timeout(30):
        while len(here.engine.requests) + len(candidate.requests) < 12:  # six were asked again
            await asyncio.sleep(0.02)
        while not (spent := await here.rows("ai_budgets", "starts")) or spent[0]["tokens"] < 6 * 11:
            await asyncio.sleep(0.05)
    assert [(row["requests"], row["tokens"]) for row in spent] == [(6, 6 * 11)]
    assert len(await here.written(6)) == 6
    counts = (await here.gateway.analysis())["versions"]["v2"]
    assert (counts["requests"], counts["errors"]) == (0, 0)


async def test_an_officer_exports_and_deletes_what_is_kept_of_a_user(place: Any) -> None:
    here = await place(contexts=True, keepContent=True)
    await here.call("POST", "/v1/contexts", {"user": "jane", "content": "Likes tea."})
    await here.ask(user="jane", messages=[{"role": "user", "content": PIN}])
    await here.ask(user="john")
    await here.written(2)
    at = "/v1/users/jane/records"
    assert (await here.call("GET", at))[0] == 403  # not with the application's key
    status, text, headers = await here.call("GET", at, key=ADMIN)
    lines = [json.loads(line) for line in text.splitlines()]
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    assert [line["kind"] for line in lines] == ["context", "interaction", "end"]
    assert (lines[0]["content"], PIN in lines[1]["prompt"], lines[2]["interactions"]) == ("Likes tea.", True, 1)
    status, answer, _ = await here.call("DELETE", at, key=ADMIN)
    assert (status, answer) == (200, {"deleted": {"interactions": 1, "contents": 1, "feedback": 0, "contexts": 1}})
    assert [json.loads(line)["kind"] for line in (await here.call("GET", at, key=ADMIN))[1].splitlines()] == ["end"]
    assert (await here.ask(user="jane")).headers["x-sluice-context"] == "none"
    assert (await here.call("GET", "/v1/users/jane/other", key=ADMIN))[0] == 404
    assert (await here.call("POST", at, key=ADMIN))[0] == 405


async def test_the_command_does_the_same_from_the_gateways_settings(
    place: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = await place()
    await here.ask(user="jane")
    await here.ask(user="john")
    await here.written(2)
    runner = CliRunner()
    environment = {"SLUICE_DATABASE_URL": here.url, "SLUICE_PSEUDONYM_KEY_FILE": str(tmp_path / "pseudonym.key")}

    async def command(*words: str, **env: str) -> Any:
        return await asyncio.to_thread(runner.invoke, app, [*words], env=environment | env)

    jane = ("--tenant", "acme", "--user", "jane")
    exported = (await command("export", *jane)).stdout.splitlines()
    assert [json.loads(line)["kind"] for line in exported] == ["interaction", "end"]
    assert json.loads((await command("delete", *jane)).stdout)["deleted"]["interactions"] == 1
    assert json.loads((await command("expire", "--older-than", "1d")).stdout) == {"deleted": 0}
    assert json.loads((await command("expire", "--older-than", "0s")).stdout) == {"deleted": 1}
    wrong = await command("expire", "--older-than", "soon")
    assert (wrong.exit_code, "--older-than" in wrong.stderr) == (2, True)
    away = await command("delete", *jane, SLUICE_DATABASE_URL="postgresql://me:hunter2@127.0.0.1:9/x")
    assert (away.exit_code, "cannot be reached" in away.stderr, "hunter2" in away.output) == (2, True, False)


def test_a_new_key_is_shown_once_and_its_entry_fits_a_tenants_file() -> None:
    made = CliRunner().invoke(app, ["key", "--id", "web-1", "--admin"])
    secret = made.stderr.split()[-1]
    entry = json.loads(made.stdout)
    assert entry == {
        "id": "web-1", "digest": "sha256:" + hashlib.sha256(secret.encode()).hexdigest(), "admin": True
    }  # fmt: skip
    assert CliRunner().invoke(app, ["key", "--id", "Not A Name"]).exit_code == 2


@ONE_DATABASE
async def test_a_token_of_the_issuer_stands_for_its_subject_only(place: Any, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = pyjwt.get_algorithm_by_name("ES256").to_jwk(key.public_key(), as_dict=True) | {"kid": "k"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public]}))
    issuer = JwtSettings("https://issuer.example", "sluice", keys_file=tmp_path / "jwks.json")
    here = await place(contexts=True, settings={"jwt": issuer})

    def token(**claims: Any) -> str:
        whole = {"iss": "https://issuer.example", "aud": "sluice", "sub": "jane", "tenant": "acme",
                 "exp": time.time() + 600} | claims  # fmt: skip
        return pyjwt.encode(whole, key, "ES256", {"kid": "k"})

    await here.call("POST", "/v1/contexts", {"user": "jane", "content": "Likes tea."}, key=token())
    got = await here.ask(key=token(), user="john")  # says so, but the token says otherwise
    assert (got.status, got.headers["x-sluice-context"].startswith("ctx_")) == (200, True)
    assert (await here.call("GET", "/v1/contexts/john", key=token()))[0] == 403
    assert (await here.call("GET", "/v1/users/jane/records", key=token()))[0] == 403
    stranger = await here.ask(key=token(tenant="unknown"))
    assert (stranger.status, stranger.headers["www-authenticate"]) == (401, "Bearer")
    late = await here.ask(key=token(exp=time.time() - 60))
    assert late.content["error"]["message"] == "Incorrect token provided: the token has expired."
    await here.ask(user="jane")
    rows = await here.written(2)
    assert rows[0]["pseudonym"] == rows[1]["pseudonym"]
    assert 'sluice_unauthenticated_total{shown="token"} 2.0' in await here.gateway.metrics()


@SHARED_DATABASE
async def test_while_the_database_is_away_requests_are_answered_without_context(postgres: Any, place: Any) -> None:
    here = await place(contexts=True)
    await here.call("POST", "/v1/contexts", {"user": "jane", "content": "Likes tea."})
    postgres.stop()
    try:
        got = await here.ask(user="john")
        assert (got.status, got.headers["x-sluice-context"]) == (200, "unavailable")
        status, answer, headers = await here.call("GET", "/v1/contexts/jane")
        assert (status, answer["error"]["code"], int(headers["retry-after"])) == (503, "database_unavailable", 5)
    finally:
        postgres.start()
    rows = await here.written(1)
    assert rows[0]["outcome"] == "ok"


@SHARED_DATABASE
async def test_without_a_key_of_its_own_a_shared_database_knows_no_users(place: Any) -> None:
    here = await place(contexts=True, settings={"pseudonym_key_file": None})
    status, answer, _ = await here.call("GET", "/v1/contexts/jane")
    assert (status, answer["error"]["code"]) == (503, "no_pseudonym_key")
    assert "x-sluice-context" not in (await here.ask(user="jane")).headers


@ONE_DATABASE
async def test_gateways_that_share_no_database_do_not_pretend_to_know_users(place: Any) -> None:
    here = await place(contexts=True, settings={"replicas": 2})
    for method, path in (("GET", "/v1/contexts/jane"), ("DELETE", "/v1/users/jane/records")):
        status, answer, _ = await here.call(method, path, key=ADMIN)
        assert (status, answer["error"]["code"]) == (503, "no_shared_database")
    assert "x-sluice-context" not in (await here.ask(user="jane")).headers


@ONE_DATABASE
async def test_where_requests_wait_the_higher_priority_goes_first_and_keys_take_turns(place: Any) -> None:
    def entry(name: str, priority: int) -> dict[str, Any]:
        return {"id": name, "digest": "sha256:" + hashlib.sha256(f"sk-{name}".encode()).hexdigest(),
                "priority": priority}  # fmt: skip

    here = await place()
    (here.gateway.settings.keys_dir / "acme").write_text(
        json.dumps({"keys": [entry("batch", 2), entry("web", 5), entry("chat", 5)]})
    )
    await here.gateway.route(here.backend, limits=RoutingLimits(in_flight_per_replica=1, queue=20))
    async with asyncio.timeout(30):
        while (await here.ask(key="sk-chat")).status != 200:
            await asyncio.sleep(0.05)
    here.engine.hold, here.engine.requests = asyncio.Event(), []
    asking = []
    for n, name in enumerate(("web", "batch", "web", "web", "chat")):
        asking.append(asyncio.create_task(here.ask(key=f"sk-{name}", messages=[{"role": "user", "content": name}])))
        async with asyncio.timeout(30):
            while await here.standing() != n + 1:
                await asyncio.sleep(0.01)
    here.engine.hold.set()
    await asyncio.gather(*asking)
    order = [request["messages"][0]["content"] for request in here.engine.requests]
    assert order == ["web", "web", "chat", "web", "batch"]


@pytest.mark.parametrize(
    ("place_of", "says"),
    [("database_url", "cannot keep a key beside the database"), ("spool_dir", "cannot open the spool")],
)
async def test_a_place_that_cannot_be_written_to_is_named_at_the_start(
    tmp_path: Path, place_of: str, says: str
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("where a folder should be")
    chosen: dict[str, Any] = {"database_url": f"sqlite:///{tmp_path}/i.db", "spool_dir": tmp_path / "spool"}
    chosen[place_of] = f"sqlite:///{blocked}/i.db" if place_of == "database_url" else blocked / "spool"
    (tmp_path / "keys").mkdir()
    settings = Settings(keys_dir=tmp_path / "keys", routes_file=tmp_path / "routes.json", host="127.0.0.1",
                        port=free_port(), internal_port=free_port(), **chosen)  # fmt: skip
    with pytest.raises((OSError, SettingsError), match=says) as error:
        await serve(settings)
    assert "SLUICE_" in str(error.value)


async def test_on_a_laptop_the_gateway_makes_its_key(start_gateway: Any, tmp_path: Path) -> None:
    gateway = await start_gateway(database_url=f"sqlite:///{tmp_path}/x/i.db")
    made = tmp_path / "x" / "i.db.key"
    assert (len(made.read_bytes()), os.stat(made).st_mode & 0o777) == (64, 0o600)
    await gateway.close()
    before = made.read_bytes()
    await start_gateway(database_url=f"sqlite:///{tmp_path}/x/i.db")
    assert made.read_bytes() == before
