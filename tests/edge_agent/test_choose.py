"""Which release and which variant a device takes."""

import pytest
from edge_world import AT, MODEL
from hypothesis import given
from hypothesis import strategies as st
from sluice_contracts.device import InstalledVersion
from sluice_contracts.names import Quantization
from sluice_contracts.release import CohortStage, Release, Variant
from sluice_edge.home import AgentConfig, Device
from sluice_edge.pull.choose import Circumstances, choose, decide

Q4, Q8 = Quantization.Q4_K_M, Quantization.Q8_0
PREFER = AgentConfig.model_fields["prefer"].default
ZERO = "sha256:" + "0" * 64


def variant(quantization: Quantization, ram: int) -> Variant:
    return Variant(
        quantization=quantization,
        size=ram,
        sha256="sha256:" + str(ram).zfill(64),
        piece_size=1024,
        pieces=[ZERO],
        ram_bytes=ram,
        context=512,
        mean_kld=0,
        same_top=1,
    )


def release(version: str = "v2", percent: int = 100, *variants: Variant) -> Release:
    return Release(
        model=MODEL,
        version=version,
        lineage="l" + version,
        manifest_digest=ZERO,
        dataset_run_id="d",
        git_sha="g",
        evaluation_digest=ZERO,
        evaluation_passed=True,
        variants=list(variants) or [variant(Q8, 80), variant(Q4, 50)],
        cohort=CohortStage(percent=percent),
        published_at=AT,
    )


def installed(version: str, sha256: str) -> InstalledVersion:
    return InstalledVersion(
        version=version,
        lineage="l" + version,
        quantization=Q4,
        sha256=sha256,
        size=50,
        context=512,
        slot="a",
        manifest_digest=ZERO,
        dataset_run_id="d",
        git_sha="g",
        evaluation_digest=ZERO,
        release_digest=ZERO,
        tuf_version=1,
        installed_at=AT,
    )


def case(**changes) -> Circumstances:
    return Circumstances(
        **({"cohort": 0, "prefer": PREFER, "memory": 100, "installed": None, "rejected": ()} | changes)
    )


def test_the_preferred_variant_that_fits_is_taken() -> None:
    assert decide(release(), case()).variant.quantization is Q4
    assert decide(release(), case(prefer=[Q8, Q4])).variant.quantization is Q8
    assert decide(release(), case(prefer=[Q8, Q4], memory=79)).variant.quantization is Q4


def test_a_device_with_too_little_memory_waits_and_says_so() -> None:
    decision = decide(release(), case(memory=49))
    assert decision.action == "waiting"
    assert "memory" in decision.message


@pytest.mark.parametrize(
    ("cohort", "percent", "action"), [(0, 1, "update"), (1, 1, "waiting"), (99, 100, "update"), (0, 0, "waiting")]
)
def test_a_stage_opens_for_cohorts_below_its_percentage(cohort: int, percent: int, action: str) -> None:
    assert decide(release("v2", percent), case(cohort=cohort)).action == action


def test_what_is_installed_already_is_not_fetched_again() -> None:
    same = installed("v2", variant(Q4, 50).sha256)
    assert decide(release(), case(installed=same)).action == "unchanged"
    assert decide(release("v2", 0), case(installed=same)).action == "unchanged"
    older = installed("v1", variant(Q4, 50).sha256)
    assert decide(release(), case(installed=older)).action == "update"


def test_a_file_that_failed_here_is_not_tried_over_and_over() -> None:
    decision = decide(release(), case(rejected={variant(Q4, 50).sha256}))
    assert decision.action == "waiting"
    assert "--retry" in decision.message


def test_nothing_published_is_no_error() -> None:
    assert decide(None, case()).action == "waiting"


@given(
    st.lists(st.tuples(st.sampled_from(Quantization), st.integers(1, 100)), min_size=1, max_size=6), st.integers(0, 120)
)
def test_a_chosen_variant_always_fits(offers: list[tuple[Quantization, int]], memory: int) -> None:
    variants = [variant(q, ram) for q, ram in offers]
    chosen = choose(variants, PREFER, memory)
    if chosen is None:
        assert all(v.ram_bytes > memory for v in variants)
    else:
        assert chosen.ram_bytes <= memory


@given(st.integers(0, 2**128 - 1))
def test_a_devices_cohort_is_stable(number: int) -> None:
    first = Device(id=f"{number:032x}", audit_key="0" * 64)
    again = Device(id=f"{number:032x}", audit_key="1" * 64)
    assert 0 <= first.cohort <= 99
    assert first.cohort == again.cohort


def test_cohorts_spread_evenly() -> None:
    counts = [0] * 10
    for number in range(2000):
        counts[Device(id=f"{number:032x}", audit_key="0" * 64).cohort // 10] += 1
    assert min(counts) > 140
