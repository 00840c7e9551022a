"""A training that was stopped ends where one that was not does; a batch is learnt from as its rows are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import MimiModel

from mini.codec import Continuous, Decoder
from mini.training import Plan, Scores, Training

PLAN = Plan("part", steps=8, learning_rate=0.1, warmup=2, save_seconds=0.0)


class Stopped(Exception):
    """As if the process had been ended."""


def trained(folder: Path, *, stop_at: int | None = None) -> Tensor:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss(step: int) -> tuple[Tensor, Scores]:
        if step == stop_at:
            raise Stopped
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32))
        total = (module(x) - 1).square().mean()
        return total, {"loss": total.item()}

    Training(folder, PLAN, module).run(loss, lambda: {})
    return module.weight.detach().clone()


def test_a_stopped_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path / "whole", tmp_path / "stopped"):
        folder.mkdir()
    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tmp_path / "stopped", stop_at=5)
    torch.testing.assert_close(trained(tmp_path / "stopped"), whole, rtol=0, atol=0)
    assert '"step": 8' in capsys.readouterr().out


def test_a_finished_training_stays(tmp_path: Path) -> None:
    whole = trained(tmp_path)
    torch.testing.assert_close(trained(tmp_path, stop_at=0), whole, rtol=0, atol=0)


def trained_names(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def test_a_codec_that_was_stored_trains_the_same_parameters_on(tmp_path: Path) -> None:
    codec = Continuous().codec
    fresh = trained_names(Decoder(codec))
    codec.save_pretrained(tmp_path)
    assert trained_names(Decoder(MimiModel.from_pretrained(tmp_path))) == fresh
