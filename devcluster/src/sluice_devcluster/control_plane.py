"""Command lines of etcd, the API server, the controller manager and the scheduler.

One place for both users: the node of `sluice-dev up`, and the bare control plane that tests start without root.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Endpoints:
    """Where the parts of a control plane listen. `bind` is the API server's address, `advertise` the one it tells."""

    etcd_port: int
    etcd_peer_port: int
    api_port: int
    bind: str
    advertise: str

    @property
    def etcd(self) -> str:
        return f"http://127.0.0.1:{self.etcd_port}"


def etcd_command(programs: Path, data: Path, at: Endpoints) -> list[str]:
    """etcd that does not wait for the disk: its data live no longer than the cluster."""
    peer = f"http://127.0.0.1:{at.etcd_peer_port}"
    return [
        str(programs / "etcd"),
        f"--data-dir={data}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={at.etcd}",
        f"--advertise-client-urls={at.etcd}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=warn",
    ]


def api_server_command(programs: Path, pki: Path, at: Endpoints, service_range: str) -> list[str]:
    """The API server with role-based access control and certificates from `pki`."""
    return [
        str(programs / "kube-apiserver"),
        f"--etcd-servers={at.etcd}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        f"--service-cluster-ip-range={service_range}",
        f"--bind-address={at.bind}",
        f"--advertise-address={at.advertise}",
        f"--secure-port={at.api_port}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--profiling=false",
    ]


def kubelet_access(pki: Path) -> list[str]:
    """The API server's further flags where there is a kubelet to ask for logs and exec."""
    return [
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def controller_manager_command(
    programs: Path, pki: Path, kubeconfig: Path, scratch: Path, port: int = 10257
) -> list[str]:
    """The controller manager; start it only when the API server is ready, it ends on missing roles."""
    return [
        str(programs / "kube-controller-manager"),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={pki / 'service-accounts.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={scratch}",
        # It would make its default one below /usr/libexec.
        f"--flex-volume-plugin-dir={scratch / 'volume-plugins'}",
    ]


def scheduler_command(programs: Path, kubeconfig: Path, scratch: Path) -> list[str]:
    """The scheduler."""
    return [
        str(programs / "kube-scheduler"),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--cert-dir={scratch}",
    ]
