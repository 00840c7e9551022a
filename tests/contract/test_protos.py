"""The protos are in good style, and what was released stays readable."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).resolve().parents[2] / "protos"
RELEASED = PROTOS / "released.binpb"


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the buf that stands beside this Python."""
    program = shutil.which("buf", path=str(Path(sys.executable).parent))
    assert program is not None, "buf is not installed"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_style() -> None:
    done = buf("lint", PROTOS)
    assert done.returncode == 0, done.stdout + done.stderr
    done = buf("format", "--diff", "--exit-code", PROTOS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_released_is_broken() -> None:
    done = buf("breaking", PROTOS, "--against", RELEASED)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("proto", "before", "after"),
    [
        ("codec", r"\n[^\n]*\n\s*uint32 frame_count = 2;", ""),
        ("types", r"uint32 token_id = 2;", "uint32 token_id = 12;"),
        ("speech", r"bool return_prompt = 5;", "string return_prompt = 5;"),
        ("reasoner", r"rpc Generate\(", "rpc Reason("),
    ],
    ids=["field removed", "field renumbered", "type changed", "rpc renamed"],
)
def test_a_break_is_noticed(tmp_path: Path, proto: str, before: str, after: str) -> None:
    protos = tmp_path / "protos"
    shutil.copytree(PROTOS, protos)
    path = protos / "chroma_mesh" / proto / "v1" / f"{proto}.proto"
    text, count = re.subn(before, after, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)
    assert buf("build", protos).returncode == 0
    assert buf("breaking", protos, "--against", RELEASED).returncode != 0
