"""What an engine process imports on CPU. Imported ahead of time by the fork server; nothing else imports it."""

import ctypes
import os
import signal

import ray  # noqa: F401
import vllm.model_executor.models.llama
import vllm.v1.engine.core
import vllm.v1.executor.uniproc_executor
import vllm.v1.worker.cpu_model_runner
import vllm.v1.worker.cpu_worker  # noqa: F401

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def _end_with_the_server() -> None:
    """The engine ends when the fork server does, and that ends when the replica does: none outlives its replica."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


os.register_at_fork(after_in_child=_end_with_the_server)
