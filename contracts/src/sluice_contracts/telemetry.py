"""The switches that keep what Sluice is built on from reporting home, and from looking for models on the network.

One table: the operator puts it into every pod it makes, the chart and the images carry it, and the commands set it for
what runs on a laptop. Others of Sluice's dependencies send nothing by themselves: PyTorch and transformers' own code
have no reporting; OpenTelemetry sends only to an endpoint that somebody configures (a pool may, in `gateway.tracing`;
engines take no other's word for it: `sluice_serving.arguments.prepare`); sentry-sdk, which comes with FastAPI's command
line, is started by that command alone.
"""

import os
from collections.abc import MutableMapping

OFF_SWITCHES: dict[str, str] = {
    "DO_NOT_TRACK": "1",  # the common one: vLLM (vllm/usage/usage_lib.py) and huggingface_hub heed it
    "VLLM_NO_USAGE_STATS": "1",  # vLLM's report of hardware, model and settings
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray's hourly report, with the tags that Ray Serve LLM adds to it
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub's and, through it, transformers'
    "HF_HUB_OFFLINE": "1",  # no request to the hub at all: models come from the bucket
}
"""By environment variable; each was looked up in the package's sources, at the versions in the lock file."""


def switch_off(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set every switch that is not set. Call it before what reads them is imported: most read them once."""
    for name, value in OFF_SWITCHES.items():
        environment.setdefault(name, value)
