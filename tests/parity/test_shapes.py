"""`chroma-mesh parity` on checkpoints of other sizes, head counts, rope rules and codebooks, through real processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from shapes import SHAPES, write_set

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_on_another_shape(shape: str, tmp_path: Path) -> None:
    write_set(tmp_path, shape, GOLDEN)
    command = [Path(sys.executable).with_name("chroma-mesh"), "parity", tmp_path, "--keep-going"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 of 3 cases equal" in run.stdout
