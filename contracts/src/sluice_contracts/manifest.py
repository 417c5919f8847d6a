"""The manifest: what one run made, from what, and how good it is. It becomes a ModelVersion."""

from typing import Annotated, Literal

from pydantic import Field

from sluice_contracts.base import Contract, Digest, Name, RelativePath, ShortText, Timestamp, Uri
from sluice_contracts.names import Quantization
from sluice_contracts.training_run import Recipe, Waiver


class Artifact(Contract):
    """One file of a version, by its path below the run folder."""

    path: RelativePath
    role: Literal["served", "device", "adapter", "report"]
    """served: what vLLM loads (safetensors, tokenizer, config). device: a GGUF. adapter: LoRA weights, to
    be laid over the base."""
    quantization: Quantization | None = None
    size: Annotated[int, Field(ge=0)]
    sha256: Digest


class DatasetProvenance(Contract):
    """Which data the model learned from."""

    run_id: ShortText
    uri: Uri
    digest: Digest
    signals_digest: Digest | None = None
    """Digest of the device signals that weighed the slices; None if none did."""


class EvaluationProvenance(Contract):
    """The report the gate judged by."""

    uri: Uri
    digest: Digest
    passed: bool
    waiver: Waiver | None = None


class CodeProvenance(Contract):
    """The code that trained."""

    git_sha: ShortText
    versions: dict[str, ShortText] = {}
    """Versions of the libraries that shape the result, such as torch and transformers."""


class Manifest(Contract):
    """Ties the dataset's run id, the git commit, the evaluation report and every artefact's digest together."""

    schema_version: Literal[1] = 1
    model: Name
    lineage: ShortText
    training_run: ShortText
    run_uri: Uri
    dataset: DatasetProvenance
    base_lineage: ShortText | None = None
    """Lineage of the version that was fine-tuned; None if trained from scratch."""
    base_digest: Digest
    code: CodeProvenance
    recipe: Recipe
    evaluation: EvaluationProvenance
    parity_uri: Uri
    parity_digest: Digest
    artifacts: Annotated[list[Artifact], Field(min_length=1, max_length=256)]
    created_at: Timestamp

    def served(self) -> list[Artifact]:
        """The files an engine in the cluster loads."""
        return [a for a in self.artifacts if a.role == "served"]

    def device(self) -> list[Artifact]:
        """The GGUF files for devices."""
        return [a for a in self.artifacts if a.role == "device"]

    def adapter(self) -> list[Artifact]:
        """The LoRA weights and their configuration, in PEFT's layout, for engines that run the version with digest
        `base_digest`. Empty where the weights were changed otherwise, or adapter and merged weights differ too much."""
        return [a for a in self.artifacts if a.role == "adapter"]
