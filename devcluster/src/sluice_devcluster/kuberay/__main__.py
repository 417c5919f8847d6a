"""Run the stand-in: `python -m sluice_devcluster.kuberay KUBECONFIG`."""

import asyncio
import logging
import sys
from pathlib import Path

import aiohttp

from sluice_devcluster.kuberay.controller import Controller
from sluice_devcluster.kuberay.kube import Kube, client_context


async def main(kubeconfig: Path) -> None:
    """Reconcile for ever."""
    server, context = client_context(kubeconfig)
    async with aiohttp.ClientSession() as session:
        await Controller(Kube(session, server, context), session).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main(Path(sys.argv[1])))
