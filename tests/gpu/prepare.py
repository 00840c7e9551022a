"""`python tests/gpu/prepare.py`: collects in build/gpu what tests/gpu/run.sh needs on a GPU machine without a network.

Wheels for that machine's Python and the stubs of the protos; refuses when something is missing, or it is too much.
"""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Annotated
from zipfile import Path as ZipPath

import typer
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name, parse_wheel_filename
from packaging.version import Version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = ROOT / "build" / "gpu"

EXTRAS = ("server", "bench")
LIBC_MINORS = range(5, 29)
"""Of the glibc 2.x that wheels may be made for; pip wants each of them named."""

MIB = 2**20
LIMIT_MIB = 60
"""Of the working tree and all that is carried with it."""


def main(
    python_version: Annotated[str, typer.Option(help="Python of the GPU machine.", metavar="X.Y")] = "3.12",
) -> None:
    """Collect wheels and stubs for a GPU machine in build/gpu."""
    shutil.rmtree(TARGET, ignore_errors=True)
    wheels = TARGET / "wheels"
    wheels.mkdir(parents=True)
    download(wheels, python_version)
    problems = missing(wheels, python_version)
    subprocess.run([sys.executable, ROOT / "protos" / "build_stubs.py"], check=True)
    shutil.copytree(ROOT / "generated", TARGET / "generated", ignore=shutil.ignore_patterns("__pycache__", "stamp"))
    # Last: run.sh takes it for the sign that all of this is complete.
    if not problems:
        (TARGET / "python-version").write_text(f"{python_version}\n", encoding="utf-8")

    carried = sum(file.stat().st_size for file in TARGET.rglob("*") if file.is_file())
    tree = sum(file.stat().st_size for file in tree_files())
    typer.echo(
        f"build/gpu: {len(list(wheels.iterdir()))} wheels for Python {python_version} and the stubs, "
        f"{carried / MIB:.1f} MiB; with the working tree ({tree / MIB:.1f} MiB) {(carried + tree) / MIB:.1f} MiB"
    )
    if carried + tree > LIMIT_MIB * MIB:
        problems.append(f"that is more than {LIMIT_MIB} MiB")
    for problem in problems:
        typer.echo(problem, err=True)
    raise typer.Exit(1 if problems else 0)


def download(wheels: Path, python_version: str) -> None:
    """Gets the wheels of requirements.txt, and only these."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in LIBC_MINORS]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
            *("--implementation", "cp", "--python-version", python_version),
            *(word for platform in platforms for word in ("--platform", platform)),
            *("--constraint", ROOT / "constraints.txt", "--requirement", HERE / "requirements.txt"),
            *("--dest", wheels),
        ],
        check=True,
    )


def missing(wheels: Path, python_version: str) -> list[str]:
    """What the project or a wheel requires and neither the wheels nor the machine have, in sentences."""
    held = dict(on_the_machine())
    required = [("chroma-mesh", requirement) for requirement in project_requirements()]
    for file in wheels.glob("*.whl"):
        name, version, _, _ = parse_wheel_filename(file.name)
        held[name] = version
        (folder,) = (item for item in ZipPath(file).iterdir() if item.name.endswith(".dist-info"))
        required += [(name, requirement) for requirement in PathDistribution(folder).requires or ()]
    return sorted(complaints(held, required, python_version))


def on_the_machine() -> Iterator[tuple[NormalizedName, Version]]:
    """The least versions of what a GPU machine has to have; machine.py checks there that it does."""
    for line in (HERE / "machine.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (least,) = requirement.specifier
            yield canonicalize_name(requirement.name), Version(least.version)


def project_requirements() -> list[str]:
    """The project's own, with the extras that are used there."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]


def complaints(
    held: dict[NormalizedName, Version], required: list[tuple[str, str]], python_version: str
) -> Iterator[str]:
    """A sentence for each requirement that is not met. Extras of requirements are not looked into: none is used."""
    machine = {"python_version": python_version, "python_full_version": f"{python_version}.0", "extra": ""}
    machine |= {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}
    for by, line in required:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate(machine):
            continue
        version = held.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            yield f"{by} requires {line}: {f'{version} is there' if version else 'it is missing'}"


def tree_files() -> Iterator[Path]:
    """The files of the working tree that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return (ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


if __name__ == "__main__":
    typer.run(main)
