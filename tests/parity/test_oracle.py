"""The second oracle agrees with the reference, so what it says of other checkpoints counts."""

from pathlib import Path

import numpy as np
import pytest
from oracle import Oracle, read_case

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny"


@pytest.fixture(scope="module")
def golden_oracle() -> Oracle:
    return Oracle(GOLDEN / "checkpoint")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", sorted(path.name for path in (GOLDEN / "cases").iterdir()))
def test_oracle_gives_the_golden_reply(golden_oracle: Oracle, case: str) -> None:
    expected = np.load(GOLDEN / "cases" / case / "expected.npz")
    got = golden_oracle.reply(read_case(GOLDEN / "cases" / case))
    steps = len(expected["reasoner_tokens"])
    for name in ("reasoner_input_ids", "voice_text_ids", "voice_codes", "frames", "spoken_frames"):
        np.testing.assert_array_equal(got[name].ravel(), expected[name].ravel(), err_msg=name)
    np.testing.assert_array_equal(got["reasoner_tokens"][:steps], expected["reasoner_tokens"])
    np.testing.assert_allclose(got["reasoner_hidden"][:steps], expected["reasoner_hidden"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got["audio"], expected["audio"], rtol=0, atol=1e-4)
