"""The image: its Dockerfile, and what its steps install, which needs no Docker."""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.k8s.manifests import ROOT, Manifests

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
# Programs that would let whoever gets in make more programs.
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "nvcc", "pip", "pip3", "protoc")


def instructions(name: str) -> list[str]:
    """What stands behind an instruction, of all its occurrences."""
    return [line.removeprefix(name).strip() for line in INSTRUCTIONS if line.startswith(f"{name} ")]


@pytest.mark.skipif(HADOLINT is None, reason="there is no hadolint: make setup installs one where there is a wheel")
def test_hadolint_finds_nothing() -> None:
    assert HADOLINT is not None
    found = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_bases_are_pinned_by_version() -> None:
    defaults = dict(argument.split("=", 1) for argument in instructions("ARG") if "=" in argument)
    stages = {line.split(" AS ")[1] for line in instructions("FROM") if " AS " in line}
    for line in instructions("FROM"):
        base = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], line.split(" AS ")[0])
        assert base in stages or re.search(r":\d+\.\d+\.\d+", base), base
    assert defaults["DEVICE"] == "cpu"


def test_the_image_runs_as_the_user_of_the_pods(manifests: Manifests) -> None:
    (user,) = instructions("USER")
    for workload in manifests.ours:
        context = workload.pod["securityContext"]
        assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
        assert context["fsGroup"] == context["runAsGroup"]


def test_the_entrypoint_takes_the_arguments_of_the_pods(manifests: Manifests) -> None:
    assert instructions("ENTRYPOINT") == ['["/opt/dependencies/bin/python", "-P", "-m"]']
    for workload in manifests.ours:
        assert "command" not in workload.service
        assert (ROOT / f"{str(workload.module).replace('.', '/')}/__main__.py").exists()


def copied() -> list[str]:
    """What the image is made of: the sources of every COPY from the context."""
    lines = [line.split() for line in instructions("COPY") if not line.startswith("--from")]
    return [source for line in lines for source in line[:-1]]


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())
    assert "*" in lines
    assert all((ROOT / source).exists() for source in copied())


def test_everything_that_a_setting_may_ask_for_is_installed() -> None:
    """Where a service says that it needs an extra of the package, the image has it."""
    installing = (ROOT / "k8s" / "image" / "install.sh").read_text(encoding="utf-8")
    (extras,) = re.findall(r"requirements\.py ([a-z ]+?) ?>", installing)
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "services").rglob("*.py")]
    needed = {name for source in sources for name in re.findall(r"the extra '?\"?\s*\"?(\w+)", source)}
    assert needed
    assert needed | {"server"} == set(extras.split())


@pytest.fixture
def weights_command(production: Manifests, tmp_path: Path) -> list[str]:
    """What the container that fetches weights runs, with the volume at a folder of the test."""
    (container,) = production.workload("speech").pod["initContainers"]
    return [word.replace("/weights", str(tmp_path)) for word in container["command"]]


def test_weights_are_fetched_until_they_are_complete_and_then_never_again(
    weights_command: list[str], tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    command = programs / "chroma-mesh"
    # Fails the first time, as a download that is cut off.
    command.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n[ "$(wc -l <{tmp_path}/calls)" -gt 1 ]\n')
    command.chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    statuses = [subprocess.run(weights_command, env=environment, check=False).returncode for _ in range(4)]
    assert statuses == [1, 0, 0, 0]
    assert (tmp_path / "calls").read_text().splitlines() == [f"weights --to {tmp_path}/chroma-4b"] * 2


def test_weights_are_fetched_to_where_the_stages_read_them(production: Manifests) -> None:
    for workload in production.ours:
        checkpoints = {
            value for name, value in production.environment(workload.service).items() if name.endswith("_CHECKPOINT")
        }
        for container in workload.pod.get("initContainers", []):
            (script,) = [word for word in container["command"] if "chroma-mesh" in word]
            assert re.findall(r"weights --to (\S+)", script) == sorted(checkpoints)


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the RUN lines of the Dockerfile that install something leave in /opt, from the files that it copies."""
    context, root = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("opt")
    for source in copied():
        target = context / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / source, target)
    steps = [line for line in instructions("RUN") if "install.sh" in line]
    assert len(steps) == 2
    for step in steps:
        # The device's build of torch is the package index's own here: the other comes from an index of PyTorch's.
        command = re.sub(r"/opt\b", str(root), step)
        subprocess.run(["sh", "-c", command], cwd=context, env=os.environ | {"DEVICE": "cuda"}, check=True)
    shutil.rmtree(root / "builder")
    for folder in (root / "dependencies", root / "mesh"):
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield root
    for folder in (root / "dependencies", root / "mesh"):
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)


def unprivileged() -> list[str]:
    """Before a command: root, which may write what is read-only, may not any more."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


@pytest.mark.timeout(1800)
def test_what_the_image_holds_runs_where_nothing_but_home_can_be_written(installed: Path, tmp_path: Path) -> None:
    paths = [installed / "mesh" / "bin", installed / "dependencies" / "bin"]
    assert not [name for folder in paths for name in COMPILERS if (folder / name).exists()]
    environment: Mapping[str, str] = {
        "PATH": ":".join([*map(str, paths), "/usr/bin", "/bin"]),
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def run(*command: str | Path) -> str:
        words = [*unprivileged(), *command]
        return subprocess.run(words, env=environment, cwd="/", check=True, capture_output=True, text=True).stdout

    assert subprocess.run([*unprivileged(), "touch", installed / "mesh" / "x"], check=False).returncode != 0
    for service in ("colocated", "gateway"):  # what the demo does not run
        assert "--log-level" in run(paths[1] / "python", "-P", "-m", f"services.{service}", "--help")
    run("chroma-mesh", "demo", "--out", tmp_path / "reply.wav")
    assert (tmp_path / "reply.wav").stat().st_size > 0
    assert list((tmp_path / ".cache").rglob("*.nbi")), "what was compiled is kept below HOME"
