"""Ray's job and Serve REST APIs on a cluster's head."""

import json
from typing import Any

import aiohttp
import yaml

from sluice_devcluster.kuberay import names
from sluice_devcluster.kuberay.rayjob import Answer

JSON = dict[str, Any]
TIMEOUT = aiohttp.ClientTimeout(total=5.0)


class RayError(Exception):
    """Ray did not answer, or refused; the message says what was asked."""


async def _ask(session: aiohttp.ClientSession, method: str, url: str, body: Any = None) -> tuple[int, str]:
    try:
        async with session.request(method, url, json=body, timeout=TIMEOUT) as reply:
            return reply.status, await reply.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RayError(f"{method} {url}: {str(error) or type(error).__name__}") from error


def _dashboard(address: str) -> str:
    return f"http://{address}:{names.DASHBOARD_PORT}"


async def job_info(session: aiohttp.ClientSession, address: str, job_id: str) -> JSON | Answer:
    """Ray's description of a job, or why there is none. `address` is the head pod's."""
    try:
        status, text = await _ask(session, "GET", f"{_dashboard(address)}/api/jobs/{job_id}")
    except RayError:
        return Answer.UNREACHABLE
    if status == 404:
        return Answer.UNKNOWN_JOB
    return dict(json.loads(text)) if status == 200 else Answer.UNREACHABLE


async def submit_job(session: aiohttp.ClientSession, address: str, spec: JSON, job_id: str) -> None:
    """Submit a RayJob's entry point. Raises RayError."""
    body: JSON = {"entrypoint": spec["entrypoint"], "submission_id": job_id, "metadata": spec.get("metadata", {})}
    if spec.get("runtimeEnvYAML"):
        body["runtime_env"] = yaml.safe_load(spec["runtimeEnvYAML"])
    for field, name in (("entrypointNumCpus", "entrypoint_num_cpus"), ("entrypointNumGpus", "entrypoint_num_gpus")):
        if spec.get(field):
            body[name] = float(spec[field])
    if spec.get("entrypointResources"):
        body["entrypoint_resources"] = json.loads(spec["entrypointResources"])
    status, text = await _ask(session, "POST", f"{_dashboard(address)}/api/jobs/", body)
    if status != 200:
        raise RayError(f"submit {job_id}: status {status}: {text[:500]}")


async def stop_job(session: aiohttp.ClientSession, address: str, job_id: str) -> None:
    """Ask Ray to stop a job. Raises RayError."""
    await _ask(session, "POST", f"{_dashboard(address)}/api/jobs/{job_id}/stop")


async def serve_details(session: aiohttp.ClientSession, address: str) -> JSON:
    """Ray Serve's description of its applications. Raises RayError."""
    status, text = await _ask(session, "GET", f"{_dashboard(address)}/api/serve/applications/")
    if status != 200:
        raise RayError(f"applications: status {status}: {text[:500]}")
    return dict(json.loads(text))


async def put_serve_config(session: aiohttp.ClientSession, address: str, config: str) -> None:
    """Declare the applications of `serveConfigV2`. Raises RayError."""
    body = yaml.safe_load(config)
    status, text = await _ask(session, "PUT", f"{_dashboard(address)}/api/serve/applications/", body)
    if status != 200:
        raise RayError(f"serve configuration: status {status}: {text[:500]}")


async def proxy_healthy(session: aiohttp.ClientSession, address: str) -> bool:
    """Whether the Serve proxy of a pod takes requests."""
    try:
        status, _ = await _ask(session, "GET", f"http://{address}:{names.SERVE_PORT}/-/healthz")
    except RayError:
        return False
    return status == 200
