"""The lineage id: one name for everything that came from the same data, base, recipe and code."""

from sluice_contracts.base import Contract, Digest, ShortText, canonical_json, sha256

SCRATCH = "sha256:" + "0" * 64
"""Stands for the base of a model that is trained from scratch."""


class LineageInputs(Contract):
    """What determines a model: two runs with equal inputs have the same lineage and share their run folder."""

    dataset_run_id: ShortText
    base_digest: Digest
    recipe_digest: Digest
    git_sha: ShortText


def lineage_id(inputs: LineageInputs) -> str:
    """The 64 hexadecimal digits of the SHA-256 of the canonical JSON of `inputs`."""
    return sha256(canonical_json(inputs.wire())).removeprefix("sha256:")


def lineage_label(lineage: str) -> str:
    """`lineage` shortened to fit a label: its first 16 digits."""
    return lineage[:16]
