"""The shell of the stand-in: looks at everything, takes each object one step further, and looks again.

Level-triggered: every round starts from lists read afresh, so a restart at any moment goes on where it was.
"""

import asyncio
import contextlib
import datetime
import logging
from typing import Any

import aiohttp

from sluice_devcluster.kuberay import autoscaler, cluster_status, names, pods, ray_api, rayjob, rayservice
from sluice_devcluster.kuberay.kube import Kube, KubeError
from sluice_devcluster.kuberay.ray_api import RayError

JSON = dict[str, Any]
ROUND_S = 0.5
NEXT_S = 0.1
"""The pause after a round that moved something: the next step may follow at once, as KubeRay's own events would have
it. A job takes five such steps from its creation to its submission."""
ASK_S = 1.0
"""How often Ray is asked about a job or an application."""
log = logging.getLogger("kuberay-stand-in")


def _key(thing: JSON) -> tuple[str, str]:
    return thing["metadata"]["namespace"], thing["metadata"]["name"]


class World:
    """Everything the stand-in looks at, read in one go."""

    def __init__(self, jobs: list[JSON], services: list[JSON], clusters: list[JSON], all_pods: list[JSON]) -> None:
        self.jobs, self.services = jobs, services
        self.clusters = {_key(c): c for c in clusters}
        self._pods: dict[tuple[str, str], list[JSON]] = {}
        for pod in all_pods:
            cluster = pod["metadata"]["labels"].get(names.CLUSTER, "")
            self._pods.setdefault((pod["metadata"]["namespace"], cluster), []).append(pod)

    def pods(self, cluster: JSON | None) -> list[JSON]:
        return self._pods.get(_key(cluster), []) if cluster else []

    def cluster(self, namespace: str, name: str | None) -> JSON | None:
        return self.clusters.get((namespace, name or ""))


class Controller:
    """One running stand-in."""

    def __init__(self, kube: Kube, session: aiohttp.ClientSession) -> None:
        self._kube, self._session = kube, session
        self._asked: dict[str, float] = {}
        self._declared: dict[str, str] = {}
        """Head pod's uid -> the serve configuration it was given."""
        self._ready_once: set[str] = set()
        """Uids of head pods that have been ready: what a new head does not know yet, it has not lost."""
        self._moved = False
        """Whether this round has written anything."""

    async def run(self) -> None:
        """Rounds, for ever."""
        while True:
            try:
                await self.round()
            except KubeError as error:
                log.warning("%s", error)
            await asyncio.sleep(self.pause)

    @property
    def pause(self) -> float:
        """Seconds until the next round."""
        return NEXT_S if self._moved else ROUND_S

    async def round(self) -> None:
        """Take every object one step further. Raises KubeError when not even the lists can be had."""
        self._moved = False
        jobs, services, clusters, all_pods = await asyncio.gather(
            self._kube.list("RayJob"),
            self._kube.list("RayService"),
            self._kube.list("RayCluster"),
            self._kube.list("Pod", f"?labelSelector={names.IS_RAY_NODE}%3Dyes"),
        )
        world = World(jobs, services, clusters, all_pods)
        uids = {thing["metadata"]["uid"] for thing in [*jobs, *services, *all_pods]}
        self._asked = {k: v for k, v in self._asked.items() if k in uids}
        self._declared = {k: v for k, v in self._declared.items() if k in uids}
        self._ready_once = {p["metadata"]["uid"] for p in all_pods if cluster_status.ready(p)} | self._ready_once & uids
        tasks = [self._guard(self._cluster(c, world), c) for c in clusters]
        tasks += [self._guard(self._job(j, world), j) for j in jobs]
        tasks += [self._guard(self._service(s, world), s) for s in services]
        await asyncio.gather(*tasks)

    async def _guard(self, work: Any, thing: JSON) -> None:
        """One object's trouble is not another's; a conflict means that somebody was faster, the next round sees."""
        try:
            await work
        except (KubeError, RayError) as error:
            if not (isinstance(error, KubeError) and error.status == 409):
                log.warning("%s %s/%s: %s", thing["kind"], *_key(thing), error)

    def _due(self, thing: JSON) -> bool:
        """Whether Ray may be asked about this object again."""
        now = asyncio.get_running_loop().time()
        uid = thing["metadata"]["uid"]
        if now - self._asked.get(uid, -ASK_S) < ASK_S:
            return False
        self._asked[uid] = now
        return True

    async def _write_status(self, thing: JSON, status: JSON) -> None:
        if status != thing.get("status", {}):
            self._moved = True
            await self._kube.put_status(thing["kind"], thing | {"status": status})

    async def _finalizer(self, thing: JSON, finalizer: str, *, there: bool) -> None:
        given = thing["metadata"].get("finalizers", [])
        wanted = [*given, finalizer] if there else [f for f in given if f != finalizer]
        if (finalizer in given) != there:
            metadata = {"finalizers": wanted, "resourceVersion": thing["metadata"]["resourceVersion"]}
            changed = await self._kube.patch(thing["kind"], *_key(thing), {"metadata": metadata})
            thing["metadata"] = changed["metadata"]

    async def _cluster(self, cluster: JSON, world: World) -> None:
        if "deletionTimestamp" in cluster["metadata"]:
            return
        mine = world.pods(cluster)
        if not cluster.get("status"):
            await self._kube.apply("Service", pods.head_service(cluster, cluster["metadata"]["name"]))
            if any(pods.hosts(group) > 1 for group in cluster["spec"].get("workerGroupSpecs", [])):
                await self._kube.apply("Service", pods.headless_service(cluster))
            if autoscaler.enabled(cluster):
                for thing in autoscaler.rights(cluster, pods.owner_reference(cluster)):
                    await self._kube.apply(thing["kind"], thing)
        changes = cluster_status.plan(cluster, mine, names.suffix())
        for name in changes.delete:
            await self._kube.delete("Pod", cluster["metadata"]["namespace"], name)
        made = [await self._kube.create("Pod", pod) for pod in changes.create]
        now = rayjob.text(datetime.datetime.now(datetime.UTC))
        await self._write_status(cluster, cluster_status.status(cluster, [*mine, *made], now))

    async def _job(self, job: JSON, world: World) -> None:
        namespace = job["metadata"]["namespace"]
        status = job.get("status", {})
        cluster = world.cluster(namespace, status.get("rayClusterName"))
        if cluster and "deletionTimestamp" in cluster["metadata"]:
            cluster = None
        head = cluster_status.head_of(world.pods(cluster))
        address = (head or {}).get("status", {}).get("podIP")
        running = status.get("jobDeploymentStatus") == "Running"
        if "deletionTimestamp" in job["metadata"]:
            if running and address:
                with contextlib.suppress(RayError):
                    await ray_api.stop_job(self._session, address, status["jobId"])
            await self._finalizer(job, names.JOB_FINALIZER, there=False)
            return
        answer: JSON | rayjob.Answer = rayjob.Answer.NOT_ASKED
        if running and self._due(job):
            answer = rayjob.Answer.UNREACHABLE
            if address:
                answer = await ray_api.job_info(self._session, address, status["jobId"])
        now = datetime.datetime.now(datetime.UTC)
        step = rayjob.step(job, cluster, answer, now, names.suffix())
        after = step.status
        if step.status.get("jobDeploymentStatus") != "ValidationFailed":
            await self._finalizer(job, names.JOB_FINALIZER, there=True)
        for action in step.actions:
            if action is rayjob.Action.CREATE_CLUSTER:
                made = pods.cluster_object(job, status["rayClusterName"], job["spec"]["rayClusterSpec"])
                await self._kube.create("RayCluster", made)
                self._moved = True
            elif action is rayjob.Action.DELETE_CLUSTER:
                await self._kube.delete("RayCluster", namespace, status["rayClusterName"])
            elif action is rayjob.Action.HEAD_SERVICE:
                await self._kube.apply("Service", pods.head_service(job, status["rayClusterName"]))
            elif action is rayjob.Action.SUBMIT and address:
                after = rayjob.after_submission(job, after, now, taken=await self._submitted(job, address))
        await self._write_status(job, after)

    async def _submitted(self, job: JSON, address: str) -> bool:
        """Submit a job's entry point; whether Ray took it."""
        job_id = job["status"]["jobId"]
        try:
            await ray_api.submit_job(self._session, address, job["spec"], job_id)
        except RayError as error:
            log.warning("RayJob %s/%s: %s", *_key(job), error)
            return False
        log.info("submitted %s of %s/%s", job_id, *_key(job))
        return True

    async def _service(self, service: JSON, world: World) -> None:
        namespace, name = _key(service)
        status = service.get("status", {})
        wanted = status.get("activeServiceStatus", {}).get("rayClusterName") or status.get(
            "pendingServiceStatus", {}
        ).get("rayClusterName")
        cluster = world.cluster(namespace, wanted)
        if "deletionTimestamp" in service["metadata"]:
            if cluster:
                await self._kube.delete("RayCluster", namespace, str(wanted))
            await self._finalizer(service, names.SERVICE_FINALIZER, there=False)
            return
        if len(name) > names.MAX_NAME:
            log.warning("RayService %s/%s: the name has more than %d characters", namespace, name, names.MAX_NAME)
            return
        await self._finalizer(service, names.SERVICE_FINALIZER, there=True)
        mine = world.pods(cluster)
        applications = await self._applications(service, mine) if cluster and self._due(service) else None
        now = rayjob.text(datetime.datetime.now(datetime.UTC))
        step = rayservice.step(service, cluster, mine, applications, now, names.suffix())
        for action in step.actions:
            if action is rayservice.Action.CREATE_CLUSTER:
                made = pods.cluster_object(service, str(wanted), service["spec"]["rayClusterConfig"])
                await self._kube.create("RayCluster", made)
                self._moved = True
            elif action is rayservice.Action.SERVICES and not status.get("activeServiceStatus", {}).get(
                "rayClusterName"
            ):
                await self._kube.apply("Service", pods.head_service(service, str(wanted)))
                await self._kube.apply("Service", pods.serve_service(service, str(wanted)))
        await self._write_status(service, step.status)

    async def _applications(self, service: JSON, mine: list[JSON]) -> JSON | None:
        """Declare the applications where the head does not have them, keep its serve label, and return statuses."""
        head = cluster_status.head_of(mine)
        address = (head or {}).get("status", {}).get("podIP")
        if head is None or not address:
            return {} if head and head["metadata"]["uid"] not in self._ready_once else None
        uid = head["metadata"]["uid"]
        healthy = cluster_status.ready(head) and await ray_api.proxy_healthy(self._session, address)
        if change := rayservice.head_serves(mine, healthy):
            labels = {"metadata": {"labels": {names.SERVE: change[1]}}}
            await self._kube.patch("Pod", head["metadata"]["namespace"], change[0], labels)
            head["metadata"]["labels"][names.SERVE] = change[1]
        if not cluster_status.ready(head):
            return None if uid in self._ready_once else {}
        try:
            config = service["spec"].get("serveConfigV2", "")
            if self._declared.get(uid) != config:
                await ray_api.put_serve_config(self._session, address, config)
                self._declared[uid] = config
                log.info("declared the applications of %s/%s", *_key(service))
            return rayservice.application_statuses(await ray_api.serve_details(self._session, address))
        except RayError as error:
            log.warning("RayService %s/%s: %s", *_key(service), error)
            return None
