"""Cuts the calling process off from the network, for good and for all its children.

Two fences, because each alone has a gap. seccomp: the kernel refuses to make any socket but a UNIX one, and (strict)
to connect anywhere at all, so neither TCP nor UDP nor a local resolver's socket can carry a prompt out; it works
unprivileged everywhere seccomp does. A network namespace of its own: there is no interface to reach. Landlock is not
enough: it lets UDP out.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
from dataclasses import dataclass
from enum import StrEnum

from sluice_edge.errors import FenceError

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_DENY = 0x00050000 | errno.EPERM
_LD_WORD, _JEQ, _JGE, _RET = 0x20, 0x15, 0x35, 0x06
_NR, _ARCH = 0, 4
_X32 = 0x40000000
"""System calls of the x32 ABI have this bit set and would pass by a filter that knows only the others."""


@dataclass(frozen=True)
class _Machine:
    """System call numbers of one architecture."""

    audit_arch: int
    socket: int
    connect: int
    sendto: int
    sendmsg: int
    sendmmsg: int
    ptrace: int
    setns: int
    process_vm_readv: int
    process_vm_writev: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 41, 42, 44, 46, 307, 101, 308, 310, 311),
    "aarch64": _Machine(0xC00000B7, 198, 203, 206, 211, 269, 117, 268, 270, 271),
}
_IO_URING = (425, 426, 427)
"""setup, enter, register: io_uring can open sockets without the socket system call."""
_PIDFD_GETFD = 438
"""Takes an open socket out of another process."""


class Reach(StrEnum):
    """How much is left."""

    ACCEPT_ONLY = "accept-only"
    """Listen on a UNIX socket and answer who connects; connect nowhere. For the engine."""
    UNIX_ONLY = "unix-only"
    """UNIX sockets both ways; sockets opened before stay usable. For the gateway, which gets its listening socket from
    its parent."""


@dataclass(frozen=True)
class Fence:
    """What holds."""

    seccomp: bool
    namespace: bool


def fence(reach: Reach, *, namespace: bool) -> Fence:
    """Fence the calling process. Must run before it has threads. seccomp is a must; a network namespace is taken where
    the system lets an ordinary user have one.

    Raises FenceError where seccomp is not to be had: such a process must not see a prompt.
    """
    isolated = namespace and _try_isolate()
    _install(_program(_machine(), reach))
    with_socket = _can_open(socket.AF_INET)
    if with_socket:
        raise FenceError("the system accepted the seccomp filter but still opens network sockets; not starting")
    return Fence(seccomp=True, namespace=isolated)


def isolate() -> None:
    """Move the calling process into a new network namespace, which has only a loopback that is down.

    Raises FenceError if the system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) == 0:
        return
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        return
    code = ctypes.get_errno()
    raise FenceError(
        f"cannot make a network namespace ({os.strerror(code)}); run as root, or allow user namespaces "
        "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
    )


def _try_isolate() -> bool:
    try:
        isolate()
    except FenceError:
        return False
    return True


def _machine() -> _Machine:
    machine = _MACHINES.get(platform.machine())
    if platform.system() != "Linux" or machine is None:
        raise FenceError(
            f"no network fence for {platform.system()} on {platform.machine()} yet; "
            "supported: Linux on x86_64 and aarch64"
        )
    return machine


def _can_open(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
    except PermissionError:
        return False
    return True


def _program(m: _Machine, reach: Reach) -> bytes:
    """The filter as `struct sock_filter[]`: jumps are relative, so it is built from the end."""
    forbidden = [*_IO_URING, _PIDFD_GETFD, m.ptrace, m.setns, m.process_vm_readv, m.process_vm_writev]
    if reach is Reach.ACCEPT_ONLY:
        forbidden += [m.connect, m.sendmsg, m.sendmmsg]
    code: list[tuple[int, int, int, int]] = [
        (_LD_WORD, 0, 0, _ARCH),
        (_JEQ, 1, 0, m.audit_arch),
        (_RET, 0, 0, _DENY),
        (_LD_WORD, 0, 0, _NR),
        (_JGE, 0, 1, _X32),
        (_RET, 0, 0, _DENY),
    ]
    for number in forbidden:
        code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _DENY)]
    # socket(domain, …): only AF_UNIX
    code += [
        (_JEQ, 0, 4, m.socket),
        (_LD_WORD, 0, 0, _argument(0)),
        (_JEQ, 0, 1, socket.AF_UNIX),
        (_RET, 0, 0, _ALLOW),
        (_RET, 0, 0, _DENY),
    ]
    if reach is Reach.ACCEPT_ONLY:
        # sendto(fd, buffer, length, flags, address, …): only without an address, which is what send() is
        code += [
            (_JEQ, 0, 6, m.sendto),
            (_LD_WORD, 0, 0, _argument(4)),
            (_JEQ, 0, 3, 0),
            (_LD_WORD, 0, 0, _argument(4) + 4),
            (_JEQ, 0, 1, 0),
            (_RET, 0, 0, _ALLOW),
            (_RET, 0, 0, _DENY),
        ]
    code.append((_RET, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in code)


def _argument(index: int) -> int:
    """Offset of the low word of a system call's argument in `struct seccomp_data` (little endian)."""
    return 16 + 8 * index


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def _install(program: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = _Filter(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise FenceError(f"cannot set no_new_privs: {os.strerror(ctypes.get_errno())}")
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0) != 0:
        raise FenceError(
            f"the kernel refused a seccomp filter ({os.strerror(ctypes.get_errno())}); "
            "the engine does not run without one"
        )
