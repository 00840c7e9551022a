"""A training that can be stopped at any time and goes on where it was."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """How one part is trained. The learning rate rises over `warmup` steps and falls as a cosine to a twentieth."""

    name: str
    steps: int
    learning_rate: float
    warmup: int = 200
    clip: float = 1.0
    weight_decay: float = 0.01
    save_seconds: float = 60.0
    score_seconds: float = 480.0


def reduced_precision(device: str) -> AbstractContextManager[object]:
    """Products in bfloat16 where the device, "cpu" or "cuda", has units for whole tiles of them.

    A CPU without any instructions for them takes 2.6 times as long for a step of the reasoner as in float32, and 1.4
    times for the codec's; one that has them for vectors alone 1.5 times, also for the speech stage's.
    """
    if device == "cpu" and not torch.cpu.get_capabilities().get("amx_bf16"):
        return nullcontext()
    return torch.autocast(device, torch.bfloat16)


class Training:
    """Steps over a module's trainable parameters; what it came to is kept in `folder` as `<name>.pt`."""

    def __init__(self, folder: Path, plan: Plan, module: nn.Module) -> None:
        self._path = folder / f"{plan.name}.pt"
        self._log = folder / f"{plan.name}.jsonl"
        self.plan, self.module = plan, module
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            parameters, plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.is_resumed = self._path.exists()
        if self.is_resumed:
            state = torch.load(self._path, weights_only=True, map_location="cpu")
            module.load_state_dict(state["module"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def run(self, loss: Callable[[int], tuple[Tensor, Scores]], score: Callable[[], Scores]) -> None:
        """Takes the steps that are left. `loss` gets the step's number, on which alone its chance should depend."""
        plan, seen = self.plan, 0
        means: dict[str, float] = {}
        saved = scored = resumed = time.monotonic()
        before = self.seconds
        while self.step < plan.steps:
            for group in self._optimizer.param_groups:
                group["lr"] = self._learning_rate()
            # On a CPU the fused attention's way back takes longer than all of the layers' products.
            with sdpa_kernel(SDPBackend.MATH):
                total, parts = loss(self.step)
                self._optimizer.zero_grad(set_to_none=True)
                total.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), plan.clip)
            self._optimizer.step()
            self.step += 1
            seen += 1
            for name, value in parts.items():
                means[name] = means.get(name, value) + (value - means.get(name, value)) / min(seen, 100)
            now = time.monotonic()
            self.seconds = before + now - resumed
            is_last = self.step == plan.steps
            if now - saved > plan.save_seconds or is_last:
                saved = now
                self._save()
            if now - scored > plan.score_seconds or is_last:
                scored = now
                self.module.eval()
                with torch.no_grad():
                    found = score()
                self.module.train()
                self._report({**means, **found})

    def _learning_rate(self) -> float:
        plan = self.plan
        share = self.step / plan.steps
        return plan.learning_rate * min(1, (self.step + 1) / plan.warmup) * (0.525 + 0.475 * math.cos(math.pi * share))

    def _save(self) -> None:
        partial = self._path.with_suffix(".partial")
        state = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save({**state, "step": self.step, "seconds": self.seconds}, partial)
        os.replace(partial, self._path)

    def _report(self, scores: Scores) -> None:
        line = {"step": self.step, "of": self.plan.steps, "minutes": round(self.seconds / 60, 1)}
        line |= {name: round(float(value), 4) for name, value in scores.items()}
        with self._log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(self.plan.name, json.dumps(line), flush=True)  # noqa: T201 - progress of a command
