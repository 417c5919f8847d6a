"""The engine's own process: `python -m sluice_edge.engine.process`, started by `engine.child`, never by hand.

Reads one line of JSON from standard input, fences itself, loads the model, answers on a UNIX socket, and ends when
standard input ends, so that it never outlives its parent. Its first line on standard output says whether it is ready.
llama.cpp may abort() on a bad file or request: that takes down this process only.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Be the engine."""
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the library prints goes to the log, not into the answer
    config = json.loads(sys.stdin.readline())
    try:
        from sluice_edge.engine.fence import Reach, fence

        if config["fenced"]:
            held = fence(Reach.ACCEPT_ONLY, namespace=True)
            fences = {"seccomp": held.seccomp, "namespace": held.namespace}
        else:
            fences = {"seccomp": False, "namespace": False}
        _engine = _load(config)
    except Exception as error:  # every cause is told to the parent, in one line
        answer.write(json.dumps({"error": f"{error}", "kind": type(error).__name__}) + "\n")
        sys.exit(3)
    answer.write(json.dumps({"ready": True, "fence": fences}) + "\n")
    sys.stdin.read()
    os._exit(0)  # without destroying the engine, which can wait for ever on a thread of its own


def _load(config: dict[str, Any]) -> object:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    params.model_alias = {config["alias"]}
    params.hostnames = [config["socket"]]
    params.n_ctx = config["context"]
    params.n_parallel = 1
    params.n_predict = config["maxTokens"]
    params.cpuparams.n_threads = config["threads"]
    params.cpuparams_batch.n_threads = config["threads"]
    params.n_threads_http = config["connections"]
    # Defaults of the library that are wrong for a private device: a user interface, an endpoint that shows other
    # requests, 8 GiB of prompt cache, downloads, an hour's patience, any web page as a caller, prompts in the log.
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_props = False
    params.endpoint_metrics = False
    params.cache_ram_mib = 0
    params.offline = True
    params.timeout_read = 120
    params.timeout_write = 120
    params.cors_origins = "http://127.0.0.1"
    params.cors_credentials = False
    params.fit_params = False
    params.warmup = False
    params.verbosity = -1
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
