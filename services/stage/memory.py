"""How large a stage is made, so that its memory holds it."""

from collections.abc import Sequence
from dataclasses import asdict

import structlog
import torch

from services.inference.memory import Demand, MemoryPlan, plan
from services.inference.memory_budget import budget, bytes_in_words, device_memory
from services.stage.settings import StageSettings

MOST_SLOTS = {"cpu": 8, "cuda": 128}
"""Slots that are made unasked, by kind of device: on a CPU a step takes longer with every slot and few replies keep up
with their listeners, on a card it reads the weights once for all slots and that is most of its time."""


def plan_memory(
    stage: str, settings: StageSettings, demand: Demand, device: torch.device, context_lengths: Sequence[int]
) -> MemoryPlan:
    """The slots that a stage's settings and its device allow, logged; BadSetting if what they ask for does not fit.

    To be called before anything is put on the device.
    """
    asked = settings.slots
    slot_counts = range(1, MOST_SLOTS[device.type] + 1) if asked is None else range(asked, asked + 1)
    allowed = budget(device_memory(device), gib=settings.memory_gib, share=settings.memory_share)
    chosen = plan(demand, allowed, slot_counts=slot_counts, context_lengths=context_lengths)
    summary = f"{chosen.size}, {bytes_in_words(chosen.total_bytes)}"
    structlog.get_logger().bind(stage=stage).info(
        "memory",
        device=device.type,
        **asdict(chosen),
        total_bytes=chosen.total_bytes,
        summary=summary,
        detail=f"{summary}: {chosen.parts}; {allowed.in_words}",
    )
    return chosen
