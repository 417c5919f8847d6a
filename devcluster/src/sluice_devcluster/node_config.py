"""The settings of the node's programs, as plain data.

Each of these settings was found to be needed; the comments say why.
"""

from pathlib import Path
from typing import Any

from sluice_devcluster import network
from sluice_devcluster.cgroups import GROUP
from sluice_devcluster.kuberay import crds
from sluice_devcluster.places import State
from sluice_devcluster.runtime import CONTAINERD_SOCKET, RUNTIME_CLASS


def kubelet(state: State) -> dict[str, Any]:
    """KubeletConfiguration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        # Machines that still boot with version 1 are supported; the kubelet refuses them unless told so.
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{GROUP}",
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "address": network.NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(state.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(state.pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(state.pki / "kubelet.key"),
        "clusterDNS": [network.NODE_ADDRESS],
        "clusterDomain": network.DOMAIN,
        # Empty: nothing of this cluster asks a name server outside of it.
        "resolvConf": str(state.etc / "resolv.conf"),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "readOnlyPort": 0,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "2%", "imagefs.available": "2%"},
        # Images come from no registry: one that is collected as garbage would be gone for good.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "5s",
        "shutdownGracePeriod": "0s",
        "enableServer": True,
    }


def kube_proxy(kubeconfig: Path) -> dict[str, Any]:
    """KubeProxyConfiguration."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "bindAddress": "0.0.0.0",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": network.POD_RANGE,
        "hostnameOverride": network.NODE_NAME,
        # Connection tracking's limits belong to the whole machine; leave them as they are.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "nftables": {"syncPeriod": "30s", "minSyncPeriod": "0s"},
    }


def pod_network() -> dict[str, Any]:
    """The CNI configuration list: a bridge, its addresses, and host ports."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        # A pod may reach itself through its own Service.
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": "/var/lib/cni/networks",
            "ranges": [[{"subnet": network.NODE_POD_RANGE}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, portmap]}


def corefile(kubeconfig: Path) -> str:
    """CoreDNS: the cluster's names, and nothing else."""
    return f""".:53 {{
  bind {network.NODE_ADDRESS}
  errors
  kubernetes {network.DOMAIN} in-addr.arpa {{
    kubeconfig {kubeconfig}
    pods insecure
    ttl 2
  }}
  ready 127.0.0.1:8181
}}
"""


def bootstrap_objects() -> list[dict[str, Any]]:
    """What the cluster holds from its first second: rights for the node's programs, and the runtime class."""
    names = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    ray = [
        {"apiGroups": ["ray.io"], "resources": ["*"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["pods", "services", "serviceaccounts"], "verbs": ["*"]},
        # Nobody may give rights that they do not have: these are the ones of Ray's autoscaler.
        {"apiGroups": [""], "resources": ["pods/resize"], "verbs": ["patch"]},
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["roles", "rolebindings"],
            "verbs": ["create", "patch"],
        },
    ]
    runtime_class = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": RUNTIME_CLASS},
        "handler": RUNTIME_CLASS,
    }
    return [*_rights("coredns", names), *_rights("kuberay-stand-in", ray), runtime_class, *crds.definitions()]


def _rights(user: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A role for the whole cluster, given to one user."""
    rbac = "rbac.authorization.k8s.io"
    name = f"sluice-dev:{user}"
    return [
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": rules,
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "User", "name": user, "apiGroup": rbac}],
        },
    ]
