"""Free TCP ports of loopback, for programs that must be told their port before they start."""

import os
import socket
import threading
from collections.abc import Iterator

# Below the ports that Linux gives out by itself (32768-60999) and that a NodePort may take (30000-32767): between
# the look at a port and the program's own bind, no connection and no `bind(0)` of anybody can take it.
FIRST, LAST = 20_000, 29_999


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nothing listens on now, all different, and not given out before by this process.

    Raises RuntimeError if fewer than `count` of the whole range are free.
    """
    found: list[int] = []
    with _lock:
        for _ in range(LAST - FIRST + 1):
            if len(found) == count:
                break
            port = next(_candidates)
            if _is_free(port):
                found.append(port)
    if len(found) < count:
        raise RuntimeError(f"only {len(found)} of {count} ports are free in {FIRST}-{LAST} of 127.0.0.1")
    return found


def free_port() -> int:
    """One of `free_ports`."""
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    for address in ("127.0.0.1", "0.0.0.0"):  # looked at, never listened on
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def _around(begin: int) -> Iterator[int]:
    """All ports of the range, again and again, beginning at a place of its own for each process."""
    size = LAST - FIRST + 1
    while True:
        yield FIRST + begin % size
        begin += 1


_lock = threading.Lock()
# A prime as the stride keeps processes that were started one after the other far apart.
_candidates = _around(os.getpid() * 997)
