"""The scan of pinned versions finds what is known to have a hole, and says so."""

from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.advisories import PINS, main, read_advisories, read_pins


def pinned(folder: Path, *lines: str) -> Path:
    path = folder / "constraints.txt"
    path.write_text("\n".join(lines))
    return path


def test_a_version_with_a_known_hole_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = pinned(tmp_path, "# of old", "H11==0.14.0  # this one", "python_multipart==0.0.20", "numpy==2.4.0")
    assert main(old) == 1
    *found, summary = capsys.readouterr().out.splitlines()
    assert {line.split(" ")[0] for line in found} == {"H11", "python_multipart"}
    assert any("GHSA-vqfr-h8mv-ghfj" in line and "fixed in 0.16.0" in line for line in found)
    assert summary.startswith(f"{len(found)} found: 3 versions")


def test_a_version_behind_the_last_hole_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(pinned(tmp_path, "h11==0.16.0", "no-such-package==1.0")) == 0
    assert capsys.readouterr().out.startswith("0 found: 2 versions")


@pytest.mark.parametrize("line", ["numpy", "numpy>=2", "numpy==2,<3"])
def test_what_pins_no_version_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected name==version"):
        list(read_pins(pinned(tmp_path, line)))


def test_the_services_own_packages_are_known() -> None:
    pinned_names = {canonicalize_name(name) for name, _ in read_pins(PINS)}
    assert {"torch", "transformers", "starlette", "protobuf", "jinja2"} <= pinned_names & read_advisories().keys()
