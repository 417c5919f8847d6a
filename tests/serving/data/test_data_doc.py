"""docs/gateway-data.md says what the code does: every field, error, metric and variable, and its example is one."""

import re
from pathlib import Path

from sluice_serving.gateway.accounting import Accounting
from sluice_serving.gateway.budgets import BudgetLedger
from sluice_serving.gateway.contexts import MAX_CHARACTERS, ContextStore
from sluice_serving.gateway.data_metrics import DataMetrics
from sluice_serving.gateway.database import open_database
from sluice_serving.gateway.interactions import InteractionLog
from sluice_serving.gateway.jwt import JwtSettings, TokenVerifier
from sluice_serving.gateway.keys import KeyStore
from sluice_serving.gateway.records import SQL_COLUMNS
from sluice_serving.gateway.spool import Spool
from sluice_serving.gateway.tenants import KeyEntry, TenantFile, read_tenant

REPOSITORY = Path(__file__).parents[3]
SOURCES = REPOSITORY / "serving/src/sluice_serving/gateway"
DOCUMENT = (REPOSITORY / "docs/gateway-data.md").read_text()


def test_the_example_of_a_tenant_is_one() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    count = iter("abc")
    filled = re.sub("sha256:…", lambda _: "sha256:" + next(count) * 64, example)
    tenant, _ = read_tenant("acme", filled.encode())
    assert (len(tenant.keys), tenant.contexts, tenant.budgets[0].money) == (3, True, "250.00")


def test_every_field_column_and_limit_is_described() -> None:
    for model, prefix in ((TenantFile, ""), (KeyEntry, "keys[].")):
        for name, field in model.model_fields.items():
            assert name == "keys" or f"`{prefix}{field.alias or name}`" in DOCUMENT, name
    assert {c for c in SQL_COLUMNS if f"`{c}`" not in DOCUMENT} == set()
    assert f"{MAX_CHARACTERS:,} characters" in DOCUMENT


def test_every_error_is_described() -> None:
    sources = "".join((SOURCES / f"{name}.py").read_text() for name in ("accounting", "budgets", "data_api"))
    codes = set(re.findall(r'code\s?=\s?"([a-z_]+)"', sources)) | {"rate_limit_exceeded"}
    assert len(codes) > 15
    assert {code for code in codes if f"`{code}`" not in DOCUMENT} == set()


def test_every_metric_is_described(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/x.db")
    seen = Accounting(
        keys=KeyStore(tmp_path),
        interactions=InteractionLog(database, Spool(tmp_path, 1), 1),
        budgets=BudgetLedger(database),
        contexts=ContextStore(database, 1),
        pseudonym_key=None,
        tokens=TokenVerifier(JwtSettings("i", "a", keys_file=tmp_path / "k")),
    )
    names = {m.name + ("_total" if m.type == "counter" else "") for m in DataMetrics(seen).collect()}
    described = set(re.findall(r"`(sluice_[a-z_]+)", DOCUMENT))
    assert names <= described
    assert described <= names


def test_every_variable_is_described() -> None:
    source = (SOURCES / "settings.py").read_text()
    ours = "KEYS_DIR|PLAIN_KEYS|DATABASE|PSEUDONYM|RETENTION|SPOOL|REPLICAS|CONTEXTS|JWT"
    variables = {v for v in re.findall(r'"(SLUICE_[A-Z_]+[A-Z])"', source) if re.match(f"SLUICE_({ours})", v)}
    assert len(variables) > 12
    assert {v for v in variables if f"`{v}`" not in DOCUMENT} == set()
