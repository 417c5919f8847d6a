"""docs/gateway.md says what the code does: every endpoint, limit, error and header of the API."""

import re
from pathlib import Path

import pytest
from sluice_contracts.inference_pool import ServingLimits
from sluice_contracts.response_cache import Cache, CacheRedis
from sluice_serving.gateway.completion import PATHS

REPOSITORY = Path(__file__).parents[2]
SOURCES = REPOSITORY / "serving/src/sluice_serving/gateway"
DOCUMENT = (REPOSITORY / "docs/gateway.md").read_text()
OF_THE_API = ("application", "asgi", "completion", "connections", "errors", "inputs", "parameters", "upstream")
"""What else has codes has pages of its own."""


@pytest.mark.parametrize("path", PATHS.values())
def test_every_endpoint_is_described(path: str) -> None:
    assert f"`POST {path}`" in DOCUMENT


@pytest.mark.parametrize("name", [f.alias or n for n, f in ServingLimits.model_fields.items()])
def test_every_limit_is_described(name: str) -> None:
    assert f"`limits.{name}`" in DOCUMENT


def test_every_setting_of_the_cache_is_described() -> None:
    sources = (SOURCES / "cache_settings.py").read_text()
    names = set(re.findall(r'"(SLUICE_[A-Z_]+)"', sources))
    names |= {f.alias or n for model in (Cache, CacheRedis) for n, f in model.model_fields.items()}
    assert len(names) > 10
    assert {name for name in names if f"{name}" not in DOCUMENT} == set()


def test_every_error_and_header_is_described() -> None:
    sources = "".join((SOURCES / f"{name}.py").read_text() for name in OF_THE_API)
    codes = set(re.findall(r'code="([a-z_]+)"', sources))
    assert codes
    assert {code for code in codes if f"`{code}`" not in DOCUMENT} == set()
    headers = set(
        re.findall(
            r'\(b"(x-sluice-[a-z-]+)"', "".join((SOURCES / f).read_text() for f in ("service.py", "fallback.py"))
        )
    )
    assert headers
    assert {header for header in headers if f"`{header}`" not in DOCUMENT} == set()
