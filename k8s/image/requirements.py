"""`python requirements.py EXTRA…`: what the project requires with these extras, for a layer without the project."""

import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def requirements(project: dict[str, Any], extras: Sequence[str]) -> Iterator[str]:
    """The requirements, those of extras that an extra names included."""
    yield from project["dependencies"]
    pending, seen = list(extras), set[str]()
    while pending:
        extra = pending.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for line in project["optional-dependencies"][extra]:
            requirement = Requirement(line)
            if requirement.name == project["name"]:
                pending += requirement.extras
            else:
                yield line


if __name__ == "__main__":
    pyproject = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    print("\n".join(requirements(pyproject["project"], sys.argv[1:])))  # noqa: T201
