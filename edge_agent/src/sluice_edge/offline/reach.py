"""Attempts to reach something, the same inside and outside the fence."""

import errno
import socket
from dataclasses import dataclass

SECONDS = 1.0
ANYWHERE = "192.0.2.1"
"""Reserved for documentation (RFC 5737): no such host exists, but a machine with any route at all would try."""
ANYWHERE_6 = "2001:db8::1"


@dataclass(frozen=True)
class Attempt:
    """One try to get out."""

    what: str
    target: str
    result: str
    reached: bool
    """Whether a packet could leave towards the target."""


def attempts(canary_port: int, repository: tuple[str, int] | None) -> list[Attempt]:
    """Try every way out: the canary that waits on this machine's loopback, TCP, UDP (DNS), IPv6, the repository."""
    tries = [
        _try("TCP to a listener on this machine", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", canary_port)),
        _try("TCP", socket.AF_INET, socket.SOCK_STREAM, (ANYWHERE, 443)),
        _try("UDP (DNS)", socket.AF_INET, socket.SOCK_DGRAM, (ANYWHERE, 53)),
        _try("UDP over IPv6", socket.AF_INET6, socket.SOCK_DGRAM, (ANYWHERE_6, 53)),
    ]
    if repository is not None:
        tries.append(_try("TCP to the repository", socket.AF_INET, socket.SOCK_STREAM, repository))
    return tries


def interfaces() -> list[str]:
    """Names of the network interfaces this process can see."""
    return [name for _, name in socket.if_nameindex()]


def _try(what: str, family: int, kind: int, address: tuple[str, int]) -> Attempt:
    target = f"{address[0]}:{address[1]}"
    try:
        with socket.socket(family, kind) as sock:
            sock.settimeout(SECONDS)
            sock.connect(address)
            if kind == socket.SOCK_DGRAM:
                sock.send(b"\0")
    except TimeoutError:
        return Attempt(what, target, "sent, no answer", True)
    except socket.gaierror as error:
        return Attempt(what, target, error.strerror or "no such name", False)
    except OSError as error:
        return Attempt(what, target, errno.errorcode.get(error.errno or 0, str(error)), False)
    return Attempt(what, target, "connected" if kind == socket.SOCK_STREAM else "sent", True)
