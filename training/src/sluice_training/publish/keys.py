"""Signing keys: made once by a person, offline; read by the publisher from a mounted Secret.

One PEM (PKCS#8, ed25519) file a key. The root keys never belong in the cluster: they only sign who may sign.
"""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from sluice_training.publish.errors import PublishError

ONLINE_ROLES = ("targets", "snapshot", "timestamp")
"""Roles whose keys the publisher holds."""


def root_key_name(index: int) -> str:
    """File name of the `index`-th root key, counted from 0: root.pem, root-2.pem, root-3.pem, …"""
    return "root.pem" if index == 0 else f"root-{index + 1}.pem"


def load_key(path: Path) -> CryptoSigner:
    """The ed25519 signer in a PEM file. Raises PublishError naming the file; never shows its content."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PublishError(
            f"{path} does not exist; make the keys with `sluice-train publish init`, or mount their Secret there"
        ) from None
    except OSError as error:
        raise PublishError(f"cannot read the signing key {path}: {error.strerror}") from error
    try:
        private = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PublishError(f"{path} is no unencrypted PEM private key; was it cut short when it was copied?") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise PublishError(f"{path} holds a key of another type; only ed25519 keys are used")
    return CryptoSigner(private)


def load_or_make_key(path: Path) -> CryptoSigner:
    """The key in `path`, made first if there is none. A half-finished `init` can so be run again without losing keys.

    A new file is readable by its owner only (0600) and never overwrites another.
    """
    if path.exists():
        return load_key(path)
    signer = CryptoSigner.generate_ed25519()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(signer.private_bytes)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, this fails if another process made the key meanwhile
    finally:
        temporary.unlink(missing_ok=True)
    return signer
