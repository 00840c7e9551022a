"""What the manifests tell the services is what the services take: variables, flags, ports, files, times."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath

import pytest
from chroma_mesh.codec.v1 import codec_pb2
from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from chroma_mesh.reasoner.v1 import reasoner_pb2
from chroma_mesh.speech.v1 import speech_pb2

from client.mesh_settings import MEMORY_SHARES
from services.codec.settings import CodecSettings
from services.colocated.settings import ColocatedSettings
from services.gateway.__main__ import LINGER_SECONDS as GATEWAY_LINGER_SECONDS
from services.gateway.health import router as health_router
from services.gateway.settings import GatewaySettings
from services.orchestrator.settings import OrchestratorSettings
from services.reasoner.settings import ReasonerSettings
from services.runtime.server import HAND_OVER_SECONDS, LINGER_SECONDS
from services.runtime.settings import ProcessSettings, ServerSettings, ServiceSettings, load
from services.speech.settings import SpeechSettings
from tests.k8s.conftest import rendered
from tests.k8s.manifests import ROOT, Manifests, Object, Workload, walk

SETTINGS: dict[str, type[ServerSettings]] = {
    "reasoner": ReasonerSettings,
    "speech": SpeechSettings,
    "codec": CodecSettings,
    "orchestrator": OrchestratorSettings,
    "gateway": GatewaySettings,
}
STAGES = ("reasoner", "speech", "codec")
HEALTH_NAMES = {
    "reasoner": reasoner_pb2.DESCRIPTOR.services_by_name["ReasonerService"].full_name,
    "speech": speech_pb2.DESCRIPTOR.services_by_name["SpeechService"].full_name,
    "codec": codec_pb2.DESCRIPTOR.services_by_name["CodecService"].full_name,
    "orchestrator": orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name,
}
# The longest reply of a client that asks for no other length: 1,000 frames of 80 ms.
USUAL_REPLY_SECONDS = 80.0
# What closing models, connections and files may take after the drain.
CLOSING_SECONDS = 5.0


def processes(workload: Workload) -> dict[str, type[ProcessSettings]]:
    """Whose settings the workload's process reads."""
    assert workload.module is not None
    name = workload.module.removeprefix("services.")
    if name == "colocated":
        return {"colocated": ColocatedSettings} | {stage: SETTINGS[stage] for stage in STAGES}
    return {name: SETTINGS[name]}


Told = dict[str, dict[str, ServerSettings]]


@pytest.fixture
def told(manifests: Manifests) -> Told:
    """The settings of each service as its own parser reads them from its pod: by workload, then by service."""
    return read_once(manifests.name)


@cache
def read_once(name: str) -> Told:
    """The settings that an overlay tells."""
    return read(rendered(name))


def read(manifests: Manifests) -> Told:
    """As `told`; a variable that is refused ends it with SystemExit."""
    settings: Told = {}
    for workload in manifests.ours:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in manifests.environment(workload.service).items():
                patch.setenv(name, value)
            flags = workload.service["args"][1:]
            found = {
                name: load(class_, flags if f"services.{name}" == workload.module else [], stage=name)
                for name, class_ in processes(workload).items()
            }
        settings[workload.name] = {name: one for name, one in found.items() if isinstance(one, ServerSettings)}
    return settings


def test_every_variable_and_flag_is_taken_by_the_service(manifests: Manifests, told: Told) -> None:
    """The parser refuses what it does not know under its own prefix; here, what has a prefix that nobody reads."""
    assert {service for settings in told.values() for service in settings} == set(SETTINGS)
    for workload in manifests.ours:
        prefixes = tuple(f"CHROMA_{name.upper()}_" for name in processes(workload))
        variables = manifests.environment(workload.service)
        assert not [name for name in variables if name.startswith("CHROMA_") and not name.startswith(prefixes)]
        assert workload.pod["enableServiceLinks"] is False, "Kubernetes would add variables of its own"


def test_a_variable_that_is_no_setting_would_be_found(
    production: Manifests, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHROMA_SPEECH_SLOTZ", "3")
    with pytest.raises(SystemExit):
        read(production)
    assert "CHROMA_SPEECH_SLOTZ is not a setting" in capsys.readouterr().err


def test_services_listen_at_the_ports_of_their_containers(manifests: Manifests, told: Told) -> None:
    for workload in manifests.ours:
        listening: list[int] = []
        for settings in told[workload.name].values():
            assert settings.host == "0.0.0.0", "other pods call it"
            listening += [settings.port, settings.metrics_port]
        assert sorted(listening) == sorted(workload.ports.values())


def test_ports_of_all_services_differ(told: Told) -> None:
    """So that any of them can share a pod, and a port says whose it is."""
    ports = [port for found in told.values() for one in found.values() for port in (one.port, one.metrics_port)]
    assert len(set(ports)) == len(ports)


def test_addresses_lead_to_all_replicas_of_the_service(manifests: Manifests, told: Told) -> None:
    for settings in (one for found in told.values() for one in found.values()):
        for field, value in settings:
            if not field.endswith("_address"):
                continue
            match = re.fullmatch(r"dns:///([a-z-]+):(\d+)", value)
            assert match is not None, "gRPC balances over the addresses of a name"
            service, workload = manifests.addressed(match[1])
            assert service["spec"]["clusterIP"] == "None", "the name must stand for every replica"
            assert int(match[2]) in [port["port"] for port in service["spec"]["ports"]]
            assert told[workload.name][field.removesuffix("_address")].port == int(match[2])


def test_traces_go_where_the_policy_lets_them(manifests: Manifests, told: Told) -> None:
    told_where = {one.otlp_endpoint for found in told.values() for one in found.values()}
    if "tracing" not in manifests.names("NetworkPolicy"):
        assert told_where == {None}
        return
    rules = manifests.get("NetworkPolicy", "tracing")["spec"]["egress"]
    ports = {port["port"] for rule in rules for port in rule["ports"]} - {53}
    assert told_where == {f"http://otel-collector.monitoring:{port}" for port in ports}


def test_each_orchestrator_admits_its_share(manifests: Manifests, told: Told) -> None:
    settings = told["orchestrator"]["orchestrator"]
    assert isinstance(settings, OrchestratorSettings)
    assert manifests.workload("orchestrator").manifest["spec"]["replicas"] == settings.orchestrator_count
    assert settings.orchestrator_count == 1 or (settings.journal or "").startswith("redis")


def test_probes_ask_what_is_answered(manifests: Manifests, told: Told) -> None:
    """gRPC's health by the service's own name; over HTTP where the port speaks TLS, as no kubelet does."""
    paths = {route.path for route in health_router.routes}
    for workload in manifests.ours:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = workload.service[kind]
            service, settings = next(
                (name, one)
                for name, one in told[workload.name].items()
                if asked_port(workload, probe) in (one.port, one.metrics_port)
            )
            if service == "gateway":
                assert probe["httpGet"]["path"] in paths
                assert workload.port(probe["httpGet"]["port"]) == settings.port
                assert (probe["httpGet"]["path"] == "/ready") == (kind == "readinessProbe")
            elif isinstance(settings, ServiceSettings) and settings.tls is not None:
                assert "grpc" not in probe
                assert workload.port(probe["httpGet"]["port"]) == settings.metrics_port
                assert probe["httpGet"]["path"] == ("/health" if kind == "livenessProbe" else "/ready")
            else:
                assert probe["grpc"] == {"port": settings.port, "service": HEALTH_NAMES[service]}


def asked_port(workload: Workload, probe: Object) -> int | None:
    """The number of the port that a probe asks."""
    asked = probe.get("grpc") or probe["httpGet"]
    return workload.port(asked["port"])


def test_no_probe_ends_a_replica_that_loads(manifests: Manifests, told: Told) -> None:
    for workload in manifests.ours:
        probe = workload.service["startupProbe"]
        patience_seconds = probe["periodSeconds"] * probe["failureThreshold"]
        assert patience_seconds < workload.manifest["spec"]["progressDeadlineSeconds"]
        for service, settings in told[workload.name].items():
            if isinstance(settings, OrchestratorSettings):
                assert patience_seconds > settings.start_deadline_seconds, "it says itself which stage is missing"
            elif service != "gateway":
                assert patience_seconds >= 15 * 60


def test_a_hang_must_last_before_a_replica_is_ended(manifests: Manifests) -> None:
    for workload in manifests.ours:
        liveness, readiness = workload.service["livenessProbe"], workload.service["readinessProbe"]
        assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60
        assert readiness["periodSeconds"] * readiness["failureThreshold"] <= 10, "callers are to hear of it soon"


def test_a_pod_ends_after_its_drain(manifests: Manifests, told: Told) -> None:
    for workload in manifests.ours:
        pause_seconds = workload.service["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause_seconds >= 5, "CoreDNS lets the names of the cluster be kept for so long"
        for service, settings in told[workload.name].items():
            after = GATEWAY_LINGER_SECONDS if service == "gateway" else HAND_OVER_SECONDS + LINGER_SECONDS
            needed_seconds = pause_seconds + settings.grace_seconds + after + CLOSING_SECONDS
            assert workload.pod["terminationGracePeriodSeconds"] >= needed_seconds
            assert settings.grace_seconds >= USUAL_REPLY_SECONDS


def test_what_shares_a_card_shares_its_memory(manifests: Manifests, told: Told) -> None:
    shares = {
        name: getattr(settings, "memory_share", None)
        for found in told.values()
        for name, settings in found.items()
        if name in STAGES
    }
    if manifests.name in ("single-gpu", "single-gpu-observed", "time-slicing"):
        assert shares == MEMORY_SHARES
    else:
        assert set(shares.values()) == {1.0}


def test_models_run_where_the_pod_has_the_means(manifests: Manifests, told: Told) -> None:
    for workload in manifests.ours:
        cards = workload.service["resources"]["limits"].get("nvidia.com/gpu", 0)
        flags = [flag for flag in workload.service["args"] if flag.startswith("--device=")]
        devices = {flag.partition("=")[2] for flag in flags} or {
            getattr(settings, "device", "cpu") for settings in told[workload.name].values()
        }
        assert devices == {"cuda" if cards else "cpu"}
        assert workload.service["image"].endswith("-cuda" if cards else "-cpu")
        assert ("nodeSelector" in workload.pod) == ("tolerations" in workload.pod) == bool(cards)


def files_of(settings: ServerSettings) -> Iterator[tuple[str, PurePosixPath]]:
    """The settings that name a file or a folder."""
    for field, value in settings:
        if value is not None and (isinstance(value, PurePosixPath) or (field == "checkpoint" and "/" in str(value))):
            yield field, PurePosixPath(value)


def test_files_of_settings_are_mounted(manifests: Manifests, told: Told) -> None:
    """Read-only but for the folder of voices; whole volumes, because a single file's mount never changes."""
    for workload in manifests.ours:
        volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
        for settings in told[workload.name].values():
            for field, path in files_of(settings):
                (mount,) = [
                    mount for mount in workload.service["volumeMounts"] if path.is_relative_to(mount["mountPath"])
                ]
                assert mount.get("readOnly", False) == (field != "voices"), field
                assert "subPath" not in mount
                if (secret := volumes[mount["name"]].get("secret")) is not None:
                    held = {item["path"] for item in secret.get("items", [])} or keys_of(
                        manifests, secret["secretName"]
                    )
                    assert path.name in held, f"{field} is {path}"


def keys_of(manifests: Manifests, secret: str) -> set[str]:
    """What a secret holds: a certificate's files, or what docs/deploy.md says to put into it."""
    if any(certificate["spec"]["secretName"] == secret for certificate in manifests.of("Certificate")):
        return {"tls.crt", "tls.key", "ca.crt"}
    return set(re.findall(rf"create secret generic {secret} .*?--from-(?:file|literal)=([\w.]+)", deploy_page()))


def deploy_page() -> str:
    """The page about deploying."""
    return (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def test_secrets_are_made_by_certificates_or_by_hand_as_the_page_says(manifests: Manifests) -> None:
    used = {name for workload in manifests.workloads for name in secret_names(workload.pod)}
    made = {certificate["spec"]["secretName"] for certificate in manifests.of("Certificate")}
    assert {name for name in used - made if not keys_of(manifests, name)} == set()


def secret_names(pod: Object) -> Iterator[str]:
    """The secrets that a pod needs."""
    for key, value in walk(pod):
        if key == "secretKeyRef":
            yield value["name"]
        elif key == "secretName":
            yield value


def test_certificates_are_for_the_names_that_callers_use(production: Manifests) -> None:
    told = read_once(production.name)
    certificates = {entry["spec"]["secretName"]: entry["spec"] for entry in production.of("Certificate")}
    for settings in (one for found in told.values() for one in found.values()):
        for field, value in settings:
            if field.endswith("_address"):
                host = value.removeprefix("dns:///").partition(":")[0]
                spec = certificates[f"{host}-tls"]
                assert host in spec["dnsNames"]
                assert "server auth" in spec["usages"]
    assert "front" in certificates["orchestrator-tls"]["dnsNames"]
    assert "client auth" in certificates["orchestrator-stages-tls"]["usages"]


def test_who_may_call_a_stage_is_signed_apart(production: Manifests) -> None:
    """Whoever has a certificate of the stages' authority may call a stage: the front's are from another one."""
    signers: dict[str, set[str]] = {}
    for certificate in production.of("Certificate"):
        signers.setdefault(certificate["spec"]["issuerRef"]["name"], set()).add(certificate["spec"]["secretName"])
    assert signers["stages"] == {"reasoner-tls", "speech-tls", "codec-tls", "orchestrator-stages-tls"}
    assert signers["front"] == {"orchestrator-tls"}
    for workload in production.ours:
        if workload.name == "gateway":
            assert "orchestrator-stages-tls" not in set(secret_names(workload.pod))


def test_the_home_of_the_image_is_a_volume(manifests: Manifests) -> None:
    """What is compiled at run time lands in HOME, which must be a volume."""
    (home,) = re.findall(r"HOME=(\S+)", (ROOT / "Dockerfile").read_text())
    for workload in manifests.ours:
        assert home in [mount["mountPath"] for mount in workload.service["volumeMounts"]]
