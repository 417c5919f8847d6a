"""The inside of the proof: `python -m sluice_edge.offline.probe`, started by `offline.verify`, never by hand.

Moves into a new network namespace, brings up loopback and nothing else, tries to get out, then runs the whole serving
path (engine and gateway, each with its own fences) there and asks a question through the OpenAI API on 127.0.0.1.
"""

import fcntl
import json
import os
import socket
import struct
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def main() -> None:
    """Be the inside."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    config = json.loads(sys.stdin.readline())
    from sluice_edge.engine.fence import isolate
    from sluice_edge.errors import EdgeError

    try:
        isolate()
        _loopback_up()
        result = _prove(config)
    except (EdgeError, OSError) as error:
        result = {"error": str(error)}
    answer.write(json.dumps(result) + "\n")
    answer.flush()


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xH", fcntl.ioctl(sock, SIOCGIFFLAGS, request))
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _prove(config: dict[str, Any]) -> dict[str, Any]:
    from sluice_edge import slots
    from sluice_edge.engine.child import Engine
    from sluice_edge.gateway.child import GatewayProcess, listen
    from sluice_edge.gateway.serving import Serving, write_serving
    from sluice_edge.home import Home
    from sluice_edge.offline import reach
    from sluice_edge.pull.update import engine_settings

    home = Home(Path(config["home"]))
    settings = home.config()
    installed = slots.current(home)
    repository = tuple(config["repository"]) if config["repository"] else None
    tries = reach.attempts(config["canaryPort"], repository)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sluice-") as folder, listen(0) as sock:
        serving = Path(folder, "serving.json")
        log = Path(folder, "engine.log")
        with (
            Engine(engine_settings(home, settings, installed, log)) as engine,
            GatewayProcess(sock, home=home.root, model=settings.model, serving=serving, count=False) as gateway,
        ):
            version = installed.version
            write_serving(
                serving,
                Serving(
                    socket=str(engine.socket),
                    version=version.version,
                    lineage=version.lineage,
                    sha256=version.sha256,
                    port=gateway.port,
                ),
            )
            gateway.await_answering()
            reply = ask(gateway.port, home.key(), settings.model, config["question"])
            return {
                "interfaces": reach.interfaces(),
                "attempts": [asdict(t) for t in tries],
                "answer": reply["choices"][0]["message"].get("content") or "",
                "tokens": reply["usage"]["completion_tokens"],
                "seconds": round(time.monotonic() - started, 3),
                "version": version.version,
                "lineage": version.lineage,
                "engineFence": asdict(engine.fence),
            }


def ask(port: int, key: str, model: str, question: str) -> dict[str, Any]:
    """One question through the OpenAI API on 127.0.0.1. Raises EdgeError."""
    import httpx

    from sluice_edge.engine.child import NO_TLS
    from sluice_edge.errors import EdgeError

    try:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json={
                "model": model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 64,
                "temperature": 0,
            },
            headers={"Authorization": f"Bearer {key}"},
            timeout=120.0,
            trust_env=False,
            verify=NO_TLS,
        )
        body: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise EdgeError(f"the gateway did not answer: {error}") from error
    if answer.status_code != 200:
        raise EdgeError(f"the gateway refused: {body.get('error', {}).get('message', answer.status_code)}")
    return body


if __name__ == "__main__":
    main()
