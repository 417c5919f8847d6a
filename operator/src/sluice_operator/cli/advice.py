"""What a person can do about an object that is not Ready: by the reason the operator gave. Pure.

The operator's messages name what is wrong; this adds the next command to type. A reason that is not known here gets
the general advice of its state, so nothing depends on this list being complete.
"""

from sluice_contracts.names import ConditionType

from sluice_operator.cli.objects import SHORT, AnyObject, condition, holds
from sluice_operator.kube.resources import INFERENCE_POOL, TRAINING_RUN

NO_OPERATOR = (
    "See whether the operator runs and watches this namespace: "
    "kubectl get pods -A -l app.kubernetes.io/name=sluice-operator"
)

BY_REASON = {
    # TrainingRun
    "GateFailed": (
        "Look at what failed: sluice lineage {name} -n {namespace}; the report names each metric and slice.",
        "Train again under another name with better data or recipe (a TrainingRun never changes).",
        "Or take it upon yourself: a new TrainingRun with evaluation.waiver {{reason, approvedBy}}; it is recorded.",
    ),
    "ParityFailed": (
        "The quantised file is not as good as the model: choose a finer quantization in spec.export.quantizations,",
        "or loosen spec.export.parity knowingly, in a TrainingRun with another name.",
    ),
    "InvalidInput": (
        "Mend what the message names (dataset, base or recipe), then apply a TrainingRun with another name.",
    ),
    "FailuresExceeded": (
        "Read the last attempt's logs: sluice logs trun/{name} -n {namespace}",
        "Then raise spec.limits.maxFailures: the run goes on from its last checkpoint.",
    ),
    "PreemptionsExceeded": (
        "Raise spec.limits.maxPreemptions (the run goes on from its last checkpoint), or leave spot machines.",
    ),
    "DurationExceeded": ("Raise spec.limits.maxDuration: the run goes on from its last checkpoint.",),
    "CostExceeded": ("Raise spec.limits.maxCost: the run goes on from its last checkpoint.",),
    "PriceUnknown": (
        "Set the price that the message names in the chart's values: helm upgrade --reuse-values --set …=PRICE",
        "Or remove spec.limits.maxCost: kubectl patch {short} {name} -n {namespace} --type merge -p "
        """'{{"spec": {{"limits": {{"maxCost": null}}}}}}'""",
    ),
    "BackOff": ("Read the failed attempt's logs: sluice logs trun/{name} -n {namespace}; the next begins by itself.",),
    "Queued": ("See where it stands in Kueue's queue: kubectl get workloads -n {namespace}",),
    "Suspended": (
        "Set spec.suspend to false: kubectl patch {short} {name} -n {namespace} --type merge -p "
        """'{{"spec": {{"suspend": false}}}}'""",
    ),
    "InvalidHardware": ("Correct spec.hardware as the message says (a TrainingRun's only under another name).",),
    "ModelVersionConflict": (
        "Delete the ModelVersion {name} if nobody uses it, or train under another name.",
    ),
    "WaitingForBase": ("See why the base is not verified: sluice explain mver/NAME -n {namespace}",),
    "StorageUnavailable": ("See whether the bucket can be reached from the cluster; it is tried again by itself.",),
    "DatasetNotFound": (
        "Build the dataset (sluice-train dataset build), or correct spec.dataset.uri under another name.",
    ),
    "DatasetDigestMismatch": (
        "Put the digest that `sluice-train dataset build` printed into spec.dataset.digest, under another name.",
    ),
    "JobStopped": ("Apply a TrainingRun with another name.",),
    "JobRejected": ("Correct spec.podTemplate or spec.hardware, in a TrainingRun with another name.",),
    # ModelVersion
    "PublishFailed": (
        "Read the publisher's log: sluice logs mver/{name} -n {namespace}",
        "Mend the cause (often the Secret of the signing keys, or access to the bucket), then delete the failed Job.",
    ),
    "YankFailed": (
        "Read the Job's log: sluice logs mver/{name} -n {namespace}; mend the cause, then delete the failed Job.",
    ),
    "RetireFailed": (
        "Read the Job's log: sluice logs mver/{name} -n {namespace}",
        "Mend the cause (often the right to delete in the bucket), then delete the failed Job.",
    ),
    "Retiring": (
        "To keep its files: name it in an InferencePool, or remove spec.retention: "
        """kubectl patch mver {name} -n {namespace} --type merge -p '{{"spec": {{"retention": null}}}}'""",
    ),
    "FilesDeleted": ("Its files are gone by its policy. Delete the ModelVersion, or train again.",),
    "ArtifactMissing": ("Put the file back from a backup, or train again: a version without its files is of no use.",),
    "ArtifactChanged": ("Somebody changed the file after the run: put it back, or train again under another name.",),
    "DigestMismatch": ("The manifest was changed after the run: put it back, or train again under another name.",),
    # InferencePool
    "RolledBack": (
        "See the evidence: sluice rollout status {name} -n {namespace}",
        "Set spec.modelVersion to a better version, or try the same again: sluice rollout retry {name} -n {namespace}",
    ),
    "Aborted": (
        "Set spec.modelVersion to the version you want, or try again: sluice rollout retry {name} -n {namespace}",
    ),
    "Paused": (
        "Go on: sluice rollout resume {name} -n {namespace}",
        "Or stop: sluice rollout abort {name} -n {namespace}",
    ),
    "Inconclusive": (
        "See how much evidence there is: sluice rollout status {name} -n {namespace}",
        "Send more traffic and raise spec.rollout.deadline; or decide: sluice rollout approve (or abort) {name} "
        "-n {namespace}",
    ),
    "AwaitingApproval": (
        "Look at the evidence: sluice rollout status {name} -n {namespace}",
        "Then let it through: sluice rollout approve {name} -n {namespace}",
    ),
    "VersionNotFound": ("List the versions: sluice status -n {namespace}; set spec.modelVersion to one of them.",),
    "VersionNotVerified": ("See why the version is not verified: sluice explain mver/NAME -n {namespace}",),
    "ModelMismatch": ("Set spec.modelVersion to a version of this pool's model: sluice status -n {namespace}",),
    "EngineFailed": (
        "Read the engine's log: sluice logs ipool/{name} --part engine -n {namespace}",
    ),
    "GatewayStarting": (
        "See what the gateway's pods say: sluice logs ipool/{name} --part gateway -n {namespace}",
    ),
    # any kind
    "ApplyRejected": (
        "Mend what the message names (a quota, an admission policy, KubeRay's CRDs); it is tried again by itself.",
    ),
    "InvalidSpec": ("Upgrade CRDs and operator together: kubectl apply --server-side -f crds/, then helm upgrade.",),
}  # fmt: skip


def advice(obj: AnyObject) -> list[str]:
    """What to do, in order; empty for an object that is Ready."""
    if not obj.conditions:
        return [NO_OPERATOR]
    if holds(obj.conditions, ConditionType.READY) and obj.observed_generation >= obj.generation:
        return []
    ready = condition(obj.conditions, ConditionType.READY)
    reason = ready.reason if ready is not None else ""
    known = BY_REASON.get(reason, ())
    filled = [line.format(name=obj.name, namespace=obj.namespace, short=SHORT[obj.resource]) for line in known]
    return filled or [_general(obj)]


def _general(obj: AnyObject) -> str:
    if obj.observed_generation < obj.generation:
        return NO_OPERATOR
    if holds(obj.conditions, ConditionType.STALLED):
        if obj.resource == TRAINING_RUN:
            return "Mend what the message names, then apply a TrainingRun with another name."
        return f"Mend what the message names: kubectl edit {SHORT[obj.resource]} {obj.name} -n {obj.namespace}"
    if obj.resource == INFERENCE_POOL:
        return f"It is on its way; watch it: sluice rollout watch {obj.name} -n {obj.namespace}"
    return f"It is on its way; watch it: kubectl get {SHORT[obj.resource]} {obj.name} -n {obj.namespace} -w"
