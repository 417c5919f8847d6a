"""Whom a gateway sends to new engines, and what counts as an answer."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice_contracts.routing import Backend
from sluice_serving.gateway.backends import Newcomers, reached
from sluice_serving.gateway.split import choose


def version(name: str, weight: int, ready: bool = True) -> Backend:
    digest = "sha256:" + name.encode().hex().ljust(64, "0")[:64]
    url = f"http://{name}"
    return Backend(model_version=name, lineage="x", manifest_digest=digest, url=url, weight=weight, ready=ready)


@pytest.mark.parametrize(
    ("status", "answer"),
    [(200, True), (404, True), (405, True), (None, False), (503, False), (502, False), (500, False), (429, False)],
)
def test_whoever_answers_is_there_unless_it_says_not_yet(status: int | None, answer: bool) -> None:
    assert reached(status) is answer


@given(st.integers(0, 100), st.sets(st.sampled_from(["a", "b"])), st.sets(st.sampled_from(["a", "b"])), st.text())
def test_people_go_to_a_version_that_has_answered_if_any_has_and_come_back_to_theirs(
    weight: int, answers: set[str], ready: set[str], person: str
) -> None:
    async def live() -> None:
        async def look(url: str, seconds: float) -> int | None:
            if url.removeprefix("http://").split("/")[0] not in answers:
                await asyncio.Event().wait()
            return 200

        backends = [version("a", weight, "a" in ready), version("b", 100 - weight, "b" in ready)]
        newcomers = Newcomers(look, lambda: None, patience=60)
        newcomers.follow(backends)
        for _ in range(5):
            await asyncio.sleep(0)
        theirs, chosen = choose(backends, person), newcomers.choose(backends, person)
        able = {b.model_version for b in backends if b.ready and b.weight}
        if theirs is None:
            assert chosen is None
            return
        assert chosen is not None
        assert chosen.model_version in able
        if able & answers:
            assert chosen.model_version in answers
        if theirs.model_version in answers or not able & answers:
            assert chosen == theirs
        assert sum(newcomers.spared.values()) == (chosen != theirs)
        newcomers.close()

    asyncio.run(live())


async def test_with_no_time_to_ask_everyone_is_taken_as_they_are() -> None:
    async def look(url: str, seconds: float) -> int | None:
        raise AssertionError("nobody is asked")

    newcomers = Newcomers(look, lambda: None, patience=0)
    newcomers.follow([version("a", 100)])
    assert newcomers.proven(version("a", 100))
    assert newcomers.probes == {}


async def test_counts_of_versions_that_are_gone_are_forgotten() -> None:
    async def look(url: str, seconds: float) -> int | None:
        return 200

    told: list[bool] = []
    newcomers = Newcomers(look, lambda: told.append(True), patience=60)
    newcomers.follow([version("a", 50), version("b", 50)])
    async with asyncio.timeout(5):
        while len(told) < 2:
            await asyncio.sleep(0)
    assert set(newcomers.probes) == {("a", "answered"), ("b", "answered")}
    newcomers.follow([version("b", 100)])
    assert set(newcomers.probes) == {("b", "answered")}
