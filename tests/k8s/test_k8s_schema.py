"""Every object of every overlay is valid, strictly, for the oldest and the newest Kubernetes that is meant."""

import json
from collections import Counter
from copy import deepcopy
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.manifests import FOLDERS, ROOT, Manifests, Object

# The oldest has a pause before the end (preStop.sleep) and spread by replica set without switches.
VERSIONS = ("1.32", "1.37")
SCHEMAS = Path(__file__).parent / "schemas"


@cache
def custom_schema(kind: str) -> jsonschema.protocols.Validator:
    """What is checked of a kind that an operator brings."""
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{kind.lower()}.json").read_text()))


@cache
def check_text(text: str, version: str) -> None:
    """As `check`, of JSON; most objects are the same in all overlays."""
    check(json.loads(text), version)


def check(manifest: Object, version: str) -> None:
    """Raises jsonschema's ValidationError for an object that is not valid, also for a field that does not exist."""
    group = manifest["apiVersion"].rpartition("/")[0]
    if "." in group and not group.endswith(".k8s.io"):
        custom_schema(manifest["kind"]).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(manifests: Manifests, version: str) -> None:
    for manifest in manifests.objects:
        check_text(json.dumps(manifest), version)


@pytest.mark.parametrize("kind", ["Deployment", "NetworkPolicy", "PodDisruptionBudget", "ScaledObject", "Certificate"])
def test_a_field_that_does_not_exist_is_found(production: Manifests, kind: str) -> None:
    manifest = deepcopy(production.of(kind)[0])
    manifest["spec"]["speling"] = 1
    with pytest.raises(jsonschema.ValidationError, match="speling"):
        check(manifest, VERSIONS[-1])


def test_the_schemas_of_custom_kinds_are_schemas() -> None:
    for path in SCHEMAS.iterdir():
        jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_all_is_in_one_namespace_under_names_of_its_own(manifests: Manifests) -> None:
    clusterwide = {"Namespace", "PriorityClass"}
    names = Counter((manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests.objects)
    assert set(names.values()) == {1}
    for manifest in manifests.objects:
        assert manifest["metadata"].get("namespace") == (None if manifest["kind"] in clusterwide else "chroma-mesh"), (
            manifest["metadata"]
        )
        assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "chroma-mesh"


def test_services_have_one_shape() -> None:
    base = ROOT / "k8s" / "base"
    folders = [folder for folder in base.iterdir() if (folder / "deployment.yaml").exists()]
    assert {folder.name for folder in folders} == {"reasoner", "speech", "codec", "orchestrator", "gateway"}
    assert len({frozenset(path.name for path in folder.iterdir()) for folder in folders}) == 1


def test_every_manifest_is_part_of_an_overlay_or_a_variant() -> None:
    """But for two that are configurations of other programs."""
    used: set[Path] = set()

    def follow(folder: Path) -> None:
        path = folder / "kustomization.yaml"
        used.add(path)
        kustomization = yaml.safe_load(path.read_text())
        entries = [*kustomization.get("resources", []), *kustomization.get("components", [])]
        entries += [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        for generator in kustomization.get("configMapGenerator", []):
            entries += [file.rpartition("=")[2] for file in generator.get("files", [])]
        for entry in entries:
            target = (folder / entry).resolve()
            if target.is_dir():
                follow(target)
            else:
                used.add(target)

    for folder in FOLDERS.values():
        follow(folder)
    folders = [ROOT / "k8s" / name for name in ("base", "components", "overlays")]
    unused = {path for folder in folders for path in folder.rglob("*.yaml") if path not in used}
    assert {path.name for path in unused} <= {"device-plugin.yaml", "prometheus-adapter.yaml"}
