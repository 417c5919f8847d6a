"""One active replica, elected by a Lease (coordination.k8s.io), as every Kubernetes controller does it.

kopf's own peering is not used: equal priorities make everyone pause. A holder renews every 5 s and gives up its work
when it could not for 10 s; others take over when they have seen no renewal for 15 s of their own clock, so clocks need
not agree. A clean end releases the Lease, and the next replica begins at once.
"""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

from sluice_operator.kube.client import ApiError, ApiUnreachable, KubeClient
from sluice_operator.kube.resources import LEASE

NAME = "sluice-operator"
DURATION_SECONDS = 15
RENEW_SECONDS = 5.0
GIVE_UP_SECONDS = 10.0
RETRY_SECONDS = 2.0
log = logging.getLogger(__name__)


class LeadershipLostError(Exception):
    """Another replica leads, or the Lease could not be renewed in time: stop at once."""


class Leader:
    """One candidate for the Lease."""

    def __init__(self, kube: KubeClient, namespace: str, identity: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._identity = identity
        self._lease: dict[str, Any] | None = None
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        while True:
            if await self._try():
                break
            await asyncio.sleep(RETRY_SECONDS)
        log.info("leading as %s", self._identity)

    async def keep(self) -> None:
        """Renew for as long as possible. Raises LeadershipLostError."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                async with asyncio.timeout(max(0.5, GIVE_UP_SECONDS - (loop.time() - renewed))):
                    # Once more, since a renewal whose answer got lost makes its own repetition a conflict.
                    if not await self._try() and not await self._try():
                        raise LeadershipLostError("another replica has taken the Lease")
                renewed = loop.time()
            except (ApiError, ApiUnreachable, TimeoutError) as error:
                if loop.time() - renewed >= GIVE_UP_SECONDS:
                    raise LeadershipLostError(f"the Lease could not be renewed for {GIVE_UP_SECONDS:.0f} s") from error
                log.warning("renewing the Lease failed: %s", error)

    async def release(self) -> None:
        """Let the next replica begin at once."""
        if self._lease is None:
            return
        lease = {**self._lease, "spec": {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
        try:
            async with asyncio.timeout(3):
                await self._kube.replace(LEASE, lease)
        except (ApiError, ApiUnreachable, TimeoutError) as error:
            log.warning("the Lease was not released, it runs out by itself: %s", error)

    async def _try(self) -> bool:
        """One attempt to take or renew the Lease. Raises ApiError and ApiUnreachable while renewing."""
        try:
            lease = await self._kube.get(LEASE, self._namespace, NAME)
            if lease is None:
                self._lease = await self._kube.create(LEASE, self._wanted(None))
                return self._lease is not None
            if not self._may_take(lease):
                return False
            self._lease = await self._kube.replace(LEASE, self._wanted(lease))
            return True
        except ApiError as error:
            if error.status == 409:  # somebody was faster
                return False
            if self._lease is None:
                log.warning("waiting for the Lease: %s", error)
                return False
            raise
        except ApiUnreachable as error:
            if self._lease is None:
                log.warning("waiting for the API server: %s", error)
                return False
            raise

    def _may_take(self, lease: dict[str, Any]) -> bool:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder in {"", self._identity}:
            return True
        now = asyncio.get_running_loop().time()
        seen = (holder, str(spec.get("renewTime")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now - self._seen_at > float(spec.get("leaseDurationSeconds") or DURATION_SECONDS)

    def _wanted(self, lease: dict[str, Any] | None) -> dict[str, Any]:
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((lease or {}).get("spec") or {})
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = moment
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if lease is not None else 0)
        spec |= {"holderIdentity": self._identity, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": moment}
        metadata = lease["metadata"] if lease is not None else {"name": NAME, "namespace": self._namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
