"""Keys, certificates and kubeconfigs of one life of the cluster.

Every component has a certificate of its own with the user and groups that Kubernetes' own roles expect, so that
authorisation in the local cluster is the real one. They are valid for 30 days and die with the cluster.
"""

import base64
import datetime
import ipaddress
import json
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sluice_devcluster.files import write_file

VALID = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Identity:
    """Whom a certificate names: the user (common name), its groups (organisations), and a server's names."""

    name: str
    user: str
    groups: tuple[str, ...] = ()
    hosts: tuple[str, ...] = field(default=())


def component_identities(node_name: str, hosts: tuple[str, ...]) -> tuple[Identity, ...]:
    """Who takes part in a cluster of one node. `hosts` are the API server's names and addresses."""
    return (
        Identity("apiserver", "kube-apiserver", hosts=hosts),
        Identity("apiserver-kubelet", "apiserver-kubelet", ("system:masters",)),
        Identity("admin", "admin", ("system:masters",)),
        Identity("controller-manager", "system:kube-controller-manager"),
        Identity("scheduler", "system:kube-scheduler"),
        Identity("kube-proxy", "system:kube-proxy"),
        Identity("kubelet", f"system:node:{node_name}", ("system:nodes",), (node_name, *hosts)),
        Identity("coredns", "coredns"),
        Identity("kuberay", "kuberay-stand-in"),
    )


def api_server_hosts(*extra: str) -> tuple[str, ...]:
    """The names by which the API server is reached from inside and outside."""
    return (
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        *extra,
    )


def write_pki(folder: Path, identities: tuple[Identity, ...]) -> None:
    """Write `ca.crt`, a `<name>.crt` and `<name>.key` for each identity, and the service accounts' key pair."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sluice-dev")])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_file(folder / "ca.crt", ca.public_bytes(serialization.Encoding.PEM))
    for identity in identities:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(identity, key.public_key(), ca, ca_key)
        write_file(folder / f"{identity.name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
        write_file(folder / f"{identity.name}.key", _private(key), mode=0o600)
    accounts = ec.generate_private_key(ec.SECP256R1())
    write_file(folder / "service-accounts.key", _private(accounts), mode=0o600)
    public = accounts.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_file(folder / "service-accounts.pub", public)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks of containers and of this machine are the same one, but a second's rounding is enough to refuse.
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + VALID)
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not sign,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate(
    identity: Identity, key: ec.EllipticCurvePublicKey, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in identity.groups]
    names.append(x509.NameAttribute(NameOID.COMMON_NAME, identity.user))
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(x509.Name(names), ca.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
    )
    if identity.hosts:
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(h) for h in identity.hosts]), critical=False)
    return builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False).sign(ca_key, hashes.SHA256())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def kubeconfig(server: str, ca: bytes, user: dict[str, str], name: str = "sluice-dev") -> str:
    """A kubeconfig that carries everything in itself. JSON is YAML, so every client reads it."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": name, "cluster": {"server": server, "certificate-authority-data": _base64(ca)}},
        ],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    return json.dumps(config, indent=1) + "\n"


def certificate_user(folder: Path, name: str) -> dict[str, str]:
    """The kubeconfig's user entry for a certificate made by `write_pki`."""
    return {
        "client-certificate-data": _base64((folder / f"{name}.crt").read_bytes()),
        "client-key-data": _base64((folder / f"{name}.key").read_bytes()),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
