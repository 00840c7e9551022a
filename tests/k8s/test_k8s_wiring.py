"""Who reaches whom: Services, selectors, network policies, and every name that one object has of another."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.k8s.manifests import ROOT, Labels, Manifests, Object, Workload, walk

STAGES = ("reasoner", "speech", "codec")
COMPONENTS = ROOT / "k8s" / "components"


@dataclass(frozen=True)
class Place:
    """Where packets come from or go to: pods of a namespace by their labels, or somewhere outside of the cluster."""

    name: str
    namespace: str | None
    labels: Labels


WORLD = Place("world", None, {})
MONITORING = Place("monitoring", "monitoring", {"app.kubernetes.io/name": "prometheus"})
DNS = Place("dns", "kube-system", {"k8s-app": "kube-dns"})


def place(workload: Workload) -> Place:
    """Where a workload's pods are."""
    return Place(workload.name, "chroma-mesh", workload.labels)


def is_selected(selector: Object, labels: Labels) -> bool:
    """As Kubernetes matches labels; an empty selector matches all."""
    wanted: Labels = selector.get("matchLabels", {})
    choices = selector.get("matchExpressions", [])
    assert all(choice["operator"] == "In" for choice in choices), "what else a selector may say is not used"
    return wanted.items() <= dict(labels).items() and all(
        labels.get(choice["key"]) in choice["values"] for choice in choices
    )


def is_peer(peer: Object, there: Place) -> bool:
    """Whether a policy's peer means the place."""
    if "ipBlock" in peer:
        return there.namespace is None
    if there.namespace is None:
        return False
    if "namespaceSelector" in peer:
        names = {"kubernetes.io/metadata.name": there.namespace}
        is_there = is_selected(peer["namespaceSelector"], names)
    else:
        is_there = there.namespace == "chroma-mesh"
    return is_there and is_selected(peer.get("podSelector", {}), there.labels)


def is_open(
    manifests: Manifests, workload: Workload, direction: str, there: Place, port: int, served: Workload
) -> bool:
    """Whether the policies of a workload's pods let packets to `port` of `served` pass, from or to `there`."""
    kind, peers = ("Ingress", "from") if direction == "in" else ("Egress", "to")
    policies = [
        policy["spec"]
        for policy in manifests.of("NetworkPolicy")
        if kind in policy["spec"]["policyTypes"] and is_selected(policy["spec"]["podSelector"], workload.labels)
    ]
    assert policies, "pods without a policy are open to all"
    rules = [rule for policy in policies for rule in policy.get(kind.lower(), [])]
    return any(
        (peers not in rule or any(is_peer(peer, there) for peer in rule[peers]))
        and ("ports" not in rule or any(served.port(entry["port"]) == port for entry in rule["ports"]))
        for rule in rules
    )


def arrows(manifests: Manifests) -> set[tuple[str, str, str]]:
    """Everything that is let through: from where, to which workload, to which of its ports."""
    found = set()
    for to in manifests.workloads:
        for name, number in to.ports.items():
            for there in (WORLD, MONITORING):
                if is_open(manifests, to, "in", there, number, to):
                    found.add((there.name, to.name, name))
            for source in manifests.workloads:
                if is_open(manifests, source, "out", place(to), number, to) and is_open(
                    manifests, to, "in", place(source), number, to
                ):
                    found.add((source.name, to.name, name))
    return found


def test_only_the_arrows_of_the_picture_are_let_through(manifests: Manifests) -> None:
    expected = {
        ("world", "gateway", "http"),
        ("world", "orchestrator", "grpc"),
        # Whoever may come from anywhere may come from there, and a front is open to pods as to others.
        ("monitoring", "gateway", "http"),
        ("monitoring", "orchestrator", "grpc"),
        ("gateway", "orchestrator", "grpc"),
    }
    for workload in manifests.ours:
        expected |= {("monitoring", workload.name, port) for port in workload.ports if port.endswith("metrics")}
        if workload.labels["app.kubernetes.io/component"] == "stage":
            expected |= {
                ("orchestrator", workload.name, port) for port in workload.ports if not port.endswith("metrics")
            }
    if "redis" in manifests.names("Deployment"):
        expected.add(("orchestrator", "redis", "redis"))
    assert arrows(manifests) == expected


def test_nothing_is_open_that_has_no_policy_of_its_own(manifests: Manifests) -> None:
    everything = manifests.get("NetworkPolicy", "nothing")["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_names_are_asked_for_by_those_who_call(manifests: Manifests) -> None:
    """The stages call nobody, but where their first container fetches weights."""
    for workload in manifests.workloads:
        rules = [
            rule
            for policy in manifests.of("NetworkPolicy")
            if is_selected(policy["spec"]["podSelector"], workload.labels)
            for rule in policy["spec"].get("egress", [])
        ]
        asks = any(is_peer(peer, DNS) for rule in rules for peer in rule["to"])
        assert asks == (workload.name in ("orchestrator", "gateway") or "initContainers" in workload.pod)
        is_traced = any(is_peer(peer, MONITORING) for rule in rules for peer in rule["to"])
        assert is_traced == ("tracing" in manifests.names("NetworkPolicy") and workload in manifests.ours)
        goes_out = any(is_peer(peer, WORLD) for rule in rules for peer in rule["to"])
        assert goes_out == ("initContainers" in workload.pod)


def test_every_service_leads_to_a_port_of_its_pods(manifests: Manifests) -> None:
    for service in manifests.of("Service"):
        (workload,) = manifests.selected(service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert workload.port(port.get("targetPort", port["port"])) is not None
            if service["spec"].get("clusterIP") == "None":
                assert workload.port(port["port"]) == port["port"], "nobody translates a port of a headless service"


def test_stages_are_headless_and_the_front_is_not(manifests: Manifests) -> None:
    headless = {
        service["metadata"]["name"] for service in manifests.of("Service") if service["spec"].get("clusterIP") == "None"
    }
    assert headless == {*STAGES, "orchestrator"}
    assert {"front", "gateway"} <= manifests.names("Service")


def test_selectors_select_what_they_belong_to(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        assert manifests.selected(workload.manifest["spec"]["selector"]["matchLabels"]) == [workload]
        for spread in workload.pod.get("topologySpreadConstraints", []):
            assert is_selected(spread["labelSelector"], workload.labels)
            assert set(spread["matchLabelKeys"]) <= {*workload.labels, "pod-template-hash"}
    for budget in manifests.of("PodDisruptionBudget"):
        (workload,) = manifests.selected(budget["spec"]["selector"]["matchLabels"])
        assert workload.name == budget["metadata"]["name"]
        assert budget["spec"]["maxUnavailable"] >= 1, "or a machine could never be drained"
    assert {workload.name for workload in manifests.ours} == manifests.names("PodDisruptionBudget")


def test_monitors_find_a_port(manifests: Manifests) -> None:
    for monitor in manifests.of("ServiceMonitor"):
        selector = monitor["spec"]["selector"]
        services = [found for found in manifests.of("Service") if is_selected(selector, found["metadata"]["labels"])]
        names = [{port["name"] for port in service["spec"]["ports"]} for service in services]
        for endpoint in monitor["spec"]["endpoints"]:
            assert any(endpoint["port"] in ports for ports in names)
    for monitor in manifests.of("PodMonitor"):
        found = [one for one in manifests.workloads if is_selected(monitor["spec"]["selector"], one.labels)]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert any(endpoint["port"] in workload.ports for workload in found)


def test_the_ingress_leads_to_the_gateway(manifests: Manifests) -> None:
    for ingress in manifests.of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                service, workload = manifests.addressed(backend["name"])
                assert workload.name == "gateway"
                assert backend["port"]["name"] in [port["name"] for port in service["spec"]["ports"]]
        hosts = {rule["host"] for rule in ingress["spec"]["rules"]}
        assert hosts == {host for entry in ingress["spec"]["tls"] for host in entry["hosts"]}


def references(pod: Object) -> Iterator[tuple[str, str]]:
    """What a pod names of other objects: kind and name."""
    yield "ServiceAccount", pod["serviceAccountName"]
    yield "PriorityClass", pod["priorityClassName"]
    for key, value in walk(pod):
        match key:
            case "configMapRef" | "configMapKeyRef":
                yield "ConfigMap", value["name"]
            case "persistentVolumeClaim":
                yield "PersistentVolumeClaim", value["claimName"]


def test_everything_that_is_named_is_there_and_used(manifests: Manifests) -> None:
    used = {reference for workload in manifests.workloads for reference in references(workload.pod)}
    for kind, name in used:
        assert name in manifests.names(kind), kind
    for kind in ("ServiceAccount", "PersistentVolumeClaim", "PriorityClass"):
        assert manifests.names(kind) == {name for used_kind, name in used if used_kind == kind}


def test_each_service_has_an_account_of_its_own(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        assert workload.pod["serviceAccountName"] == workload.name
        assert workload.pod["automountServiceAccountToken"] is False
    for account in manifests.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_issuers_and_their_secrets_are_there(manifests: Manifests) -> None:
    made = {certificate["spec"]["secretName"] for certificate in manifests.of("Certificate")}
    for certificate in manifests.of("Certificate"):
        assert certificate["spec"]["issuerRef"]["name"] in manifests.names("Issuer")
    for issuer in manifests.of("Issuer"):
        assert "selfSigned" in issuer["spec"] or issuer["spec"]["ca"]["secretName"] in made


def test_machines_are_labelled_as_the_device_plugin_is_told() -> None:
    """The name of the plugin's configuration is the label's value, and a card counts as one for each stage."""
    for sharing, way in (("time-slicing", "timeSlicing"), ("mps", "mps")):
        folder: Path = COMPONENTS / "gpu-sharing" / sharing
        machine = yaml.safe_load((folder / "machine.yaml").read_text())
        label = machine["spec"]["template"]["spec"]["nodeSelector"]["nvidia.com/device-plugin.config"]
        plugin = (folder / "device-plugin.yaml").read_text()
        assert label in plugin.splitlines()[0]
        (resource,) = yaml.safe_load(plugin)["sharing"][way]["resources"]
        assert resource == {"name": "nvidia.com/gpu", "replicas": len(STAGES)}
