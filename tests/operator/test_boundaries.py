"""Who reaches a pool's pods: the NetworkPolicies, and the gateway's TLS."""

from typing import Any

from sluice_contracts.training_run import ManifestReference
from sluice_operator.children.boundaries import pod_labels
from sluice_operator.children.gateway import gateway_objects, gateway_url
from sluice_operator.children.rayservice import Version, ray_service

KEYS = {"auth": {"secretRef": {"name": "keys"}}}


def rendered(make: Any, **gateway: Any) -> dict[tuple[str, str], dict[str, Any]]:
    spec = make.pool_spec(gateway=KEYS | gateway)
    objects = gateway_objects(make.meta("chat"), spec, make.settings())
    return {(resource.kind, obj["metadata"]["name"]): obj for resource, obj in objects}


def admitted(policy: dict[str, Any], port: int) -> list[dict[str, Any]] | None:
    """Who may reach a port: a list of peers, None for everybody."""
    peers: list[dict[str, Any]] = []
    for rule in policy["spec"]["ingress"]:
        if "ports" not in rule or port in [p["port"] for p in rule["ports"]]:
            if "from" not in rule:
                return None
            peers += rule["from"]
    return peers


def test_requests_reach_the_engines_from_the_pools_gateway_only(make: Any) -> None:
    policy = rendered(make)["NetworkPolicy", "chat-engines"]
    gateway = {"podSelector": {"matchLabels": pod_labels("gateway", "chat")}}
    engines = {"podSelector": {"matchLabels": pod_labels("engine", "chat")}}
    peers = admitted(policy, 8000)
    assert peers is not None
    assert gateway in peers
    others = [p for p in peers if p not in (gateway, engines)]
    assert others, "KubeRay asks Serve's proxy how it is"
    assert all("kuberay-operator" in str(p) or "kube-system" in str(p) for p in others)
    # Ray's own ports ask for no key.
    assert admitted(policy, 6379) == admitted(policy, 10001) == [engines]
    dashboard = admitted(policy, 8265)
    assert dashboard is not None
    assert gateway not in dashboard


def test_the_policies_select_the_pods_that_are_made(make: Any) -> None:
    found = rendered(make)
    spec = make.pool_spec(gateway=KEYS, replicas={"min": 1, "max": 3})
    version = Version(
        "v1", "support-bot", "f" * 64, ManifestReference(uri="gs://sluice/m.json", digest="sha256:" + "c" * 64)
    )
    cluster = ray_service(make.meta("chat"), spec, version, make.settings())["spec"]["rayClusterConfig"]
    templates = [cluster["headGroupSpec"]["template"]] + [g["template"] for g in cluster["workerGroupSpecs"]]
    for template in templates:
        labels = template["metadata"]["labels"]
        assert found["NetworkPolicy", "chat-engines"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    gateway = found["Deployment", "chat-gateway"]["spec"]["template"]["metadata"]["labels"]
    assert found["NetworkPolicy", "chat-gateway"]["spec"]["podSelector"]["matchLabels"].items() <= gateway.items()


def test_callers_may_be_limited_to_named_namespaces(make: Any) -> None:
    assert admitted(rendered(make)["NetworkPolicy", "chat-gateway"], 8080) is None
    limited = rendered(make, allowedNamespaces=["web", "batch"])["NetworkPolicy", "chat-gateway"]
    wanted = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["batch", "web"]}
    assert admitted(limited, 8080) == [{"namespaceSelector": {"matchExpressions": [wanted]}}]
    internal = admitted(limited, 8081)
    assert internal
    assert "web" not in str(internal)


def test_tls_takes_the_secret_and_the_usual_port(make: Any) -> None:
    plain, secure = rendered(make), rendered(make, tls={"secretRef": {"name": "chat-tls"}})
    ports = [found["Service", "chat-gateway"]["spec"]["ports"] for found in (plain, secure)]
    assert [(p[0]["name"], p[0]["port"]) for p in ports] == [("http", 80), ("https", 443)]
    pod = secure["Deployment", "chat-gateway"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "tls"]
    assert {"name": "SLUICE_TLS_DIR", "value": mount["mountPath"]} in container["env"]
    assert mount["readOnly"] is True
    assert {"name": "tls", "secret": {"secretName": "chat-tls"}} in pod["volumes"]
    assert container["readinessProbe"]["httpGet"]["port"] == "internal", "the kubelet asks without TLS"
    spec = make.pool_spec(gateway=KEYS | {"tls": {"secretRef": {"name": "chat-tls"}}})
    assert gateway_url(make.meta("chat"), spec).startswith("https://chat-gateway.")
