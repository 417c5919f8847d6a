"""What a job starts from, fetched and checked: the dataset's rows, and the model to fine-tune."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from sluice_contracts.accelerators import TPUS
from sluice_contracts.base import canonical_json, sha256
from sluice_contracts.dataset import DatasetManifest, DatasetRow
from sluice_contracts.job import JobConfig
from sluice_contracts.lineage import SCRATCH
from sluice_contracts.manifest import Manifest
from sluice_contracts.training_run import ManifestReference, Method
from sluice_storage import ChecksumError, NotFoundError, join, open_store, read_bytes

from sluice_training.dataset.config import describe
from sluice_training.dataset.read import read_manifest, read_rows
from sluice_training.errors import InvalidInputError
from sluice_training.learn.packing import Packed, pack
from sluice_training.model import circuit, files
from sluice_training.model.chat import ChatTokenizer
from sluice_training.model.llama import Llama, tiny


@dataclass(frozen=True)
class Base:
    """The model to fine-tune: where its files lie, and what they must be."""

    uri: str
    digests: dict[str, str]
    """File name to digest."""
    digest: str
    """Stands for the base in the lineage id: the digest of its manifest, or of the weights where there is none."""
    lineage: str | None = None


@dataclass(frozen=True)
class Inputs:
    """Everything a training depends on besides its recipe."""

    manifest: DatasetManifest
    base: Base | None

    @property
    def base_digest(self) -> str:
        """What stands for the base in the lineage id."""
        return self.base.digest if self.base else SCRATCH


@dataclass(frozen=True)
class Prepared:
    """A model and data, ready for the loop."""

    model: Llama
    tokenizer: ChatTokenizer
    train: Packed
    val: Packed | None


def load_config(path: Path) -> JobConfig:
    """run.json. Raises InvalidInputError naming the field."""
    try:
        return JobConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        raise InvalidInputError(f"{path}: {describe(error)}") from None


def load_manifest(reference: ManifestReference, field: str) -> Manifest:
    """A model's manifest, checked against its digest. Raises InvalidInputError naming `field`."""
    try:
        return Manifest.model_validate_json(read_bytes(reference.uri, reference.digest))
    except (NotFoundError, ChecksumError) as error:
        raise InvalidInputError(f"{field}: {error}") from None
    except ValidationError as error:
        raise InvalidInputError(f"{field}: {reference.uri} is no manifest: {describe(error)}") from None


def find_inputs(config: JobConfig) -> Inputs:
    """The dataset's manifest and the base. Raises InvalidInputError, StorageError."""
    recipe = config.spec.recipe
    accelerator = config.spec.hardware.accelerator
    if accelerator in TPUS:  # without this it would learn on the CPUs beside chips that are paid for
        raise InvalidInputError(f"hardware.accelerator is {accelerator}: this trainer knows CPUs and GPUs, no TPUs yet")
    each = config.spec.hardware.count or 1
    workers = config.spec.hardware.workers.max * each
    if recipe.batch_size < workers:
        times = f" times hardware.count {each}" if each > 1 else ""
        raise InvalidInputError(
            f"recipe.batchSize {recipe.batch_size} is smaller than hardware.workers.max "
            f"{config.spec.hardware.workers.max}{times}: some workers would have no rows; raise it to {workers}"
        )
    manifest = read_manifest(config.spec.dataset)
    if recipe.method is Method.SCRATCH:
        if config.spec.base is not None or config.base_manifest is not None:
            raise InvalidInputError("recipe.method is scratch, but a base is given; remove base or fine-tune it")
        return Inputs(manifest, None)
    if recipe.method is Method.LORA and recipe.lora is None:
        raise InvalidInputError("recipe.method is lora, but recipe.lora is missing")
    if config.base_manifest is not None:
        found = load_manifest(config.base_manifest, "base.modelVersion")
        return Inputs(manifest, _base_of_version(found, config.base_manifest.digest))
    base = config.spec.base
    if base is None or base.uri is None:
        raise InvalidInputError(
            f"recipe.method is {recipe.method}, which fine-tunes: give base.modelVersion or base.uri"
        )
    if base.digest is None:
        raise InvalidInputError("base.uri needs base.digest, the sha256 of its model.safetensors")
    return Inputs(manifest, Base(base.uri.rstrip("/"), {"model.safetensors": base.digest}, base.digest))


def _base_of_version(manifest: Manifest, digest: str) -> Base:
    """The base in `manifest`, whose own digest stands for it: the lineage id was made from that one."""
    served = {Path(a.path).name: a for a in manifest.served()}
    if "model.safetensors" not in served:
        raise InvalidInputError(
            f"base.modelVersion: the manifest of {manifest.training_run} lists no model.safetensors"
        )
    folder = str(Path(served["model.safetensors"].path).parent)
    return Base(
        uri=join(manifest.run_uri, folder),
        digests={name: artifact.sha256 for name, artifact in served.items()},
        digest=digest,
        lineage=manifest.lineage,
    )


def fetch_base(base: Base, folder: Path) -> None:
    """Download the base's files. Raises InvalidInputError if one is missing or has other bytes."""
    store = open_store(base.uri)
    for name in files.SERVED_FILES:
        try:
            store.download(name, folder / name)
        except NotFoundError as error:
            if name in base.digests or name in ("config.json", "tokenizer.json"):
                raise InvalidInputError(f"base: {error}") from None
            continue
        found = sha256((folder / name).read_bytes())
        if found != base.digests.get(name, found):
            raise InvalidInputError(f"base: {base.uri}/{name} has digest {found}, expected {base.digests[name]}")


def rows_of(config: JobConfig, manifest: DatasetManifest) -> tuple[list[DatasetRow], list[DatasetRow]]:
    """The rows to learn from and those to watch. Raises InvalidInputError naming file, line and field."""
    uri = config.spec.dataset.uri
    train = read_rows(uri, manifest, "train")
    if not train:
        raise InvalidInputError(f"dataset.uri: {uri}/train.jsonl has no rows")
    return train, read_rows(uri, manifest, "val")


def prepare(config: JobConfig, inputs: Inputs) -> Prepared:
    """The model to train and its packed data: a pure function of the inputs, the same on every worker."""
    train, val = rows_of(config, inputs.manifest)
    recipe = config.spec.recipe
    if inputs.base is None:
        tokenizer = ChatTokenizer.train(m.content for row in train for m in row.messages)
        model = Llama(tiny(tokenizer.size))
        circuit.initialise(model, recipe.seed)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            fetch_base(inputs.base, Path(temporary))
            model, tokenizer = files.load(Path(temporary))
    if recipe.sequence_length > model.shape.context:
        raise InvalidInputError(f"recipe.sequenceLength is above the model's context of {model.shape.context}")

    def packed(rows: list[DatasetRow]) -> Packed:
        return pack(tokenizer.encode_rows(rows), recipe.sequence_length, tokenizer.pad)

    return Prepared(model, tokenizer, packed(train), packed(val) if val else None)


def training_identity(config: JobConfig, inputs: Inputs) -> str:
    """Digest of all that determines the weights: checkpoints and exports of another training are never taken up."""
    return sha256(
        canonical_json(
            {
                "lineage": config.lineage,
                "dataset": config.spec.dataset.digest,
                "base": inputs.base_digest,
                "recipe": config.spec.recipe.wire(),
            }
        )
    )
