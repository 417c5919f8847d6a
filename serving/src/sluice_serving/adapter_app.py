"""The Ray Serve import path `sluice_serving.adapter_app:build`: one LoRA adapter on the engines beside it.

It answers no requests and takes no accelerator. It has every engine of the cluster load the adapter, and its status is
the adapter's: running once all of them answer by its name, failed with the reason if one refuses it. The engines'
application is not changed by it, so none of them restarts and none stops taking requests.
"""

import asyncio
import time
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from sluice_contracts.adapters import ENGINE_APPLICATION, AdapterArguments

from sluice_serving.adapters import LOADER_PLACE, read_adapter
from sluice_serving.arguments import validated
from sluice_serving.artifacts import ArtifactError

LOAD_SECONDS = 300.0
"""For all engines to fetch and load one adapter."""
WAIT_SECONDS = 1800.0
"""For the first engine to come up, where a whole cluster starts; then they are taken to sleep. Whichever comes up later
loads the adapter before it is ready."""
PAUSE_SECONDS = 1.0
RENEW_SECONDS = 10.0
"""How often engines that came up since are seen to."""


class NoEngineError(Exception):
    """There is no running engine to load an adapter on."""


class AdapterLoader:
    """Keeps one adapter on all engines."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._arguments = AdapterArguments.model_validate(arguments)
        # Here too, so that a wrong manifest fails this application at once, without an engine looking at it.
        await asyncio.to_thread(read_adapter, self._arguments)
        self._engines = serve.get_deployment_handle(self._arguments.model, ENGINE_APPLICATION)
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                await self._load()
                return
            except NoEngineError:
                if time.monotonic() > deadline:
                    return
                await asyncio.sleep(PAUSE_SECONDS)

    async def _load(self) -> None:
        """Have every running engine load it, which costs nothing where it is loaded. Raises NoEngineError,
        ArtifactError."""
        try:
            answers = await self._engines.broadcast("load_adapter", self._arguments.wire()).results_async(
                timeout_s=LOAD_SECONDS, return_exceptions=True
            )
        except (RayServeException, TimeoutError) as error:
            raise NoEngineError(f"{self._arguments.name}: no engine answers: {error}") from None
        refusals = [a for a in answers if isinstance(a, str) and a]
        if refusals:
            raise ArtifactError(f"adapter {self._arguments.name} was refused: {refusals[0]}")
        gone = [a for a in answers if isinstance(a, BaseException)]
        unforeseen = [a for a in gone if not isinstance(a, RayError | RayServeException)]
        if unforeseen:
            raise unforeseen[0]
        if not answers or gone:  # one that died in the middle; its successor loads the adapter before it is ready
            raise NoEngineError(f"{self._arguments.name}: {len(gone)} of {len(answers)} engines did not answer")

    async def check_health(self) -> None:
        """Serve asks regularly: engines that came up in the meantime get the adapter."""
        try:
            await self._load()
        except NoEngineError:
            return  # the engines' own application tells that


def build(args: dict[str, Any]) -> Application:
    """The application that keeps one adapter on the cluster's engines. Raises ValueError if an argument is wrong."""
    arguments = validated(AdapterArguments, args)
    deployment = serve.deployment(
        AdapterLoader,
        name="adapter",
        num_replicas=1,
        ray_actor_options=LOADER_PLACE,
        health_check_period_s=RENEW_SECONDS,
        health_check_timeout_s=LOAD_SECONDS + 30,
    )
    return deployment.bind(arguments.wire())
