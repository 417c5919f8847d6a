"""The gateway's own process: `python -m sluice_edge.gateway.process`, started by `gateway.child`, never by hand.

It gets its listening socket from its parent and then gives up the ability to make any network socket: it can answer who
connects to 127.0.0.1, and connect to the engine's UNIX socket, and nothing else. Ends when standard input ends.
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path


def main() -> None:
    """Be the gateway."""
    config = json.loads(sys.stdin.readline())
    from sluice_edge.engine.fence import Reach, fence

    fence(Reach.UNIX_ONLY, namespace=True)
    _serve(config)


def _serve(config: dict[str, str | int | bool]) -> None:
    import uvicorn

    from sluice_edge.audit import AuditLog
    from sluice_edge.gateway.app import Gateway, build
    from sluice_edge.home import Home
    from sluice_edge.signals import Signals

    home = Home(Path(str(config["home"])))
    gateway = Gateway(
        model=str(config["model"]),
        key=home.key(),
        serving_file=Path(str(config["serving"])),
        signals=Signals(home) if config["count"] else None,
        audit=AuditLog(home.audit, home.device().audit_key),
    )
    server = uvicorn.Server(
        uvicorn.Config(
            build(gateway),
            access_log=False,
            log_level="warning",
            lifespan="off",
            server_header=False,
            h11_max_incomplete_event_size=64 * 1024,
            limit_concurrency=64,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
    )

    def follow_parent() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=follow_parent, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=int(config["fd"]))])
    os._exit(0)


if __name__ == "__main__":
    main()
