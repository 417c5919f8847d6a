"""Answers that gateways share through a Redis: what lies there, who is believed, and what a bad server costs."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_contracts.routing import CacheRoute
from sluice_devcluster.pki import Identity, write_pki
from sluice_serving.gateway import shared_cache
from sluice_serving.gateway.cache_settings import RedisSettings, WrongRedis, read_redis
from sluice_serving.gateway.cached_answer import Kept
from sluice_serving.gateway.main import build_gateway
from sluice_serving.gateway.redis_link import RedisDown, RedisLink, read_address
from sluice_serving.gateway.sealing import PREFIX, NotOurs, Sealer
from sluice_serving.gateway.settings import Settings, SettingsError
from sluice_serving.gateway.shared_cache import SharedCache

from tests.serving.conftest import until
from tests.serving.data.redis_server import PASSWORD, RedisServer

SECRET = b"0123456789abcdef"
ANSWER = Kept(b'{"a": "very private"}', b"application/json", 3, None, "stop")
KEY = bytes(range(32))
RULES = CacheRoute(max_entries=100, max_bytes=1 << 20, ttl_seconds=60)
BUSY = 5.0
"""A deadline for a machine that is busy with other tests, where the deadline itself is not what is tested."""


@pytest.fixture(autouse=True)
def _soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_cache, "FIRST_REST", 0.05)
    monkeypatch.setattr(shared_cache, "LONGEST_REST", 0.1)
    monkeypatch.setattr(shared_cache, "CONNECT_SECONDS", 20.0)


@pytest.fixture
async def shared() -> AsyncIterator[Callable[..., Any]]:
    """Starts shared levels as so many gateways have them; waits until each is connected, unless told not to."""
    running: list[asyncio.Task[None]] = []

    async def start(url: str, *, deadline: float = BUSY, wait: bool = True, **more: Any) -> SharedCache:
        sealer = Sealer(more.pop("secret", SECRET), "ns/pool")
        now = {"now": more.pop("now")} if "now" in more else {}
        cache = SharedCache(RedisSettings(url=url, timeout=deadline, **more), sealer, **now)
        running.append(asyncio.create_task(cache.run()))
        if wait:
            await until(lambda: cache.up, "Redis is connected", 30)
        return cache

    yield start
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def written(cache: SharedCache, count: int = 1) -> None:
    await until(lambda: cache.writes["written"] >= count, "the answers are in Redis", 30)


class TestSealing:
    @settings(max_examples=30)
    @given(
        st.builds(
            Kept,
            body=st.binary(max_size=200),
            content_type=st.sampled_from([b"application/json", b"text/event-stream"]),
            prompt_tokens=st.none() | st.integers(0, 2**40),
            output_tokens=st.none() | st.integers(0, 2**40),
            finish_reason=st.none() | st.sampled_from(["stop", "length", "tool_calls"]),
        ),
        st.data(),
    )
    def test_what_was_sealed_opens_whole_and_nothing_else_opens(self, answer: Kept, data: st.DataObject) -> None:
        sealer = Sealer(SECRET, "ns/pool")
        value = sealer.seal(KEY, answer, 1_750_000_000.25)
        assert sealer.open(KEY, value) == (answer, 1_750_000_000.25)
        at = data.draw(st.integers(0, len(value) - 1))
        changed = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        for key, forged in ((KEY, changed), (KEY, value[:at]), (KEY, b""), (KEY[::-1], value)):
            with pytest.raises(NotOurs):
                sealer.open(key, forged)
        for other in (Sealer(SECRET[::-1], "ns/pool"), Sealer(SECRET, "ns/other")):
            assert other.name(KEY) != sealer.name(KEY)
            with pytest.raises(NotOurs):
                other.open(KEY, value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"http://:{PASSWORD}@h", "redis:// or rediss://"),
        (f"redis://:{PASSWORD}@", "no host"),
        (f"redis://:{PASSWORD}@h/{PASSWORD}", "database's number"),
        (f"redis://:{PASSWORD}@h:port/0", "no URL"),
        (f"rediss://:{PASSWORD}@h/0?ssl_cert_reqs=none", r"settings after \? are not taken"),
    ],
)
def test_a_wrong_url_is_named_by_its_variable_and_not_repeated(url: str, says: str) -> None:
    with pytest.raises(WrongRedis, match=says) as error:
        read_redis({"SLUICE_CACHE_REDIS_URL": url})
    assert "SLUICE_CACHE_REDIS_URL" in str(error.value)
    assert PASSWORD not in str(error.value)


def test_other_wrong_settings_are_named(tmp_path: Path) -> None:
    assert read_redis({}) is None
    for env, says in (
        ({"SLUICE_CACHE_REDIS_URL_FILE": "/no"}, "cannot read /no"),
        ({"SLUICE_CACHE_REDIS_URL": "redis://h", "SLUICE_CACHE_REDIS_TIMEOUT": "2s"}, "1ms to 1s"),
    ):
        with pytest.raises(WrongRedis, match=says):
            read_redis(env)
    lonely = Settings(keys_dir=tmp_path, database_url="postgresql://h/d", redis=RedisSettings(url="redis://h"))
    with pytest.raises(SettingsError, match="SLUICE_PSEUDONYM_KEY_FILE"):
        build_gateway(lonely)


async def test_what_one_gateway_wrote_another_reads_and_nobody_else(redis: RedisServer, shared: Any) -> None:
    now = [1000.0]
    one, other = await shared(redis.url, now=lambda: now[0]), await shared(redis.url, now=lambda: now[0])
    stranger = await shared(redis.url, secret=b"another pool's own")
    assert await other.get(KEY, 60) is None
    one.put(KEY, ANSWER, 60)
    await written(one)
    now[0] += 7
    assert await other.get(KEY, 60) == (ANSWER, 7.0)
    assert await stranger.get(KEY, 60) is None
    assert (other.reads["hit"], other.reads["miss"], stranger.reads["miss"]) == (1, 1, 1)
    with redis.client() as admin:
        (name,) = admin.keys()
        assert name.startswith(PREFIX)
        assert 0 < admin.pttl(name) <= 60_000
        assert b"private" not in admin.get(name) + name
        value = admin.get(name)
        # The pool's rules are stricter now; or somebody put a value back after its time.
        assert await other.get(KEY, 5) is None
        # Somebody moved an answer to where another is looked for, changed it, or put something huge in its place.
        admin.set(Sealer(SECRET, "ns/pool").name(KEY[::-1]), value)
        assert await other.get(KEY[::-1], 60) is None
        for forged in (value[:-1] + bytes([value[-1] ^ 1]), b"x", bytes(20 << 20)):
            admin.set(name, forged)
            assert await other.get(KEY, 60) is None
        assert other.reads["forged"] == 4
        admin.delete(name)
        admin.lpush(name, "a list")
        assert await other.get(KEY, 60) is None
    assert other.reads["refused"] == 1
    assert other.up


async def test_nobody_gets_the_answer_to_a_look_up_that_was_given_up_nor_more_than_was_asked_for(
    redis: RedisServer,
) -> None:
    link = RedisLink(read_address(redis.url), None, connections=1)
    await link.open()
    try:
        await link.write([(b"one", b"first answer", 60), (b"two", bytes(1000), 60)])
        redis.signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await link.read(b"one", 100)
        redis.signal(signal.SIGCONT)
        async with asyncio.timeout(20):
            assert await link.read(b"two", 100) == bytes(100)
    finally:
        redis.signal(signal.SIGCONT)
        await link.close()


@pytest.mark.parametrize(
    "answer", [b":nonsense\r\n", b"$99999999999999999999\r\n", b"*x\r\n", b"HTTP/1.1 400\r\n", b""]
)
async def test_what_answers_without_being_a_redis_fails_no_request(answer: bytes) -> None:
    async def answers(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(answers, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        link = RedisLink(read_address(f"redis://127.0.0.1:{port}"), None, connections=1)
        async with asyncio.timeout(20):
            await link.open()
            with pytest.raises(RedisDown):
                await link.read(b"one", 100)
        await link.close()


async def test_what_there_is_no_room_for_is_dropped(
    redis: RedisServer, shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = await shared(redis.url)
    monkeypatch.setattr(shared_cache, "MAX_QUEUED", 3)
    monkeypatch.setattr(shared_cache, "MAX_ANSWER", 1000)
    cache.put(KEY, Kept(bytes(1001), b"application/json", 1, 1, "stop"), 60)
    for n in range(5):  # nothing is written before this test waits
        cache.put(bytes([n]), ANSWER, 60)
    await written(cache, 3)
    assert (cache.writes["written"], cache.writes["dropped"]) == (3, 3)


async def test_a_server_that_hangs_is_waited_for_a_few_times_and_then_left_alone(
    redis: RedisServer, shared: Any
) -> None:
    cache = await shared(redis.url, deadline=0.03)
    redis.signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            await until(lambda: _looked(cache), "the server rests", 20)
            waited = cache.reads["timeout"]
            assert waited == shared_cache.FAILURES
            for _ in range(100):
                assert await cache.get(KEY, 60) is None
        assert cache.reads["timeout"] == waited
        assert cache.reads["resting"] >= 100
        cache.put(KEY, ANSWER, 60)
        assert cache.writes["dropped"] == 1
    finally:
        redis.signal(signal.SIGCONT)
    await until(lambda: cache.up, "it is used again", 30)


async def _looked(cache: SharedCache) -> bool:
    await cache.get(KEY, 60)
    return not cache.up


async def test_a_wrong_password_costs_no_request_anything_and_a_new_one_is_taken_up(
    redis: RedisServer, shared: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "url"
    file.write_text(redis.url.replace(PASSWORD, "wrong-word"))
    cache = await shared("", url_file=file, wait=False)
    await until(lambda: "AuthenticationError" in caplog.text, "the log says why", 20)
    assert await cache.get(KEY, 60) is None
    assert (cache.up, cache.reads["resting"]) == (False, 1)
    assert "wrong-word" not in caplog.text
    file.write_text(redis.url)
    await until(lambda: cache.up, "the new password is used", 30)


async def test_tls_is_believed_by_its_own_ca_only(
    shared: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("real", "other"):
        write_pki(tmp_path / folder, (Identity("server", "redis", hosts=("127.0.0.1", "localhost")),))
    server = RedisServer(certificates=tmp_path / "real")
    server.start()
    try:
        cache = await shared(server.url, ca_file=tmp_path / "real/ca.crt")
        cache.put(KEY, ANSWER, 60)
        await written(cache)
        assert (await cache.get(KEY, 60))[0] == ANSWER
        cheated = await shared(server.url, ca_file=tmp_path / "other/ca.crt", wait=False)
        await until(lambda: "SSLCertVerificationError" in caplog.text, "the log says why", 20)
        assert not cheated.up
    finally:
        server.kill()


async def test_two_gateways_share_answers_until_redis_is_killed_and_no_request_fails(
    redis: RedisServer, start_gateway: Any, engines: Any, served: Any, tmp_path: Path
) -> None:
    secret = tmp_path / "pseudonym.key"
    secret.write_bytes(SECRET)
    chosen = {"redis": RedisSettings(url=redis.url, timeout=BUSY), "pseudonym_key_file": secret}
    engine = await engines("one two three")
    here, there = await start_gateway(**chosen), await start_gateway(**chosen)
    for gateway in (here, there):
        await gateway.route(served(engine), cache=RULES)
        await until(lambda g=gateway: _shows(g, "sluice_cache_shared_up 1.0"), "Redis is connected", 30)

    async def ask(gateway: Any, words: str = "hi", **headers: str) -> tuple[int, str, bytes]:
        said = [{"role": "user", "content": words}]
        async with gateway.chat(temperature=0, messages=said, headers=headers) as got:
            return got.status, got.headers["x-sluice-cache"], await got.read()

    first = await ask(here)
    await until(lambda: _shows(here, 'shared_writes_total{result="written"} 1.0'), "the answer is in Redis", 30)
    assert await ask(there) == (200, "hit", first[2])
    with redis.client() as admin:
        admin.flushall()
    assert (await ask(there))[1] == "hit"  # from its own memory now
    for word, result in (("no-store", "bypass"), ("no-cache", "bypass")):
        assert (await ask(there, **{"cache-control": word}))[1] == result
    assert await _shows(there, 'sluice_cache_total{result="hit"} 2.0')
    assert await _shows(there, 'sluice_cache_shared_reads_total{result="hit"} 1.0')
    assert (first[1], len(engine.requests)) == ("miss", 3)

    asked = asyncio.gather(*(ask(g, f"question {n}") for n in range(20) for g in (here, there)))
    await until(lambda: len(engine.requests) > 5, "traffic flows", 20)
    redis.kill()
    assert {status for status, _, _ in await asked} == {200}
    assert {status for status, _, _ in [await ask(there, f"later {n}") for n in range(5)]} == {200}
    await until(lambda: _shows(there, "sluice_cache_shared_up 0.0"), "it is left alone", 20)
    redis.start()
    await until(lambda: _shows(there, "sluice_cache_shared_up 1.0"), "it is used again", 30)


async def _shows(gateway: Any, line: str) -> bool:
    return line in await gateway.metrics()
