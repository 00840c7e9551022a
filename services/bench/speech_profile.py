"""Where the time of the speech engine's rounds goes, operation by operation."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from services.bench.engine_cost import EngineCost
from services.speech.engine import Sampling

LISTED_OPERATIONS = 40
PROFILED_FRAMES = 160
"""Few, because every operation is kept and it takes much longer to sum them up than to run them; but more than a stream
gives before anybody reads, so that all streams are live at once. On a CPU a round is one operation, or none."""


async def write_profile(path: Path, costs: Sequence[tuple[EngineCost, int]], sampling: Sampling) -> None:
    """Writes a table for each of these engines with as many live streams as stand beside it."""
    tables = [await _table(cost, stream_count, sampling) for cost, stream_count in costs]
    await asyncio.to_thread(path.write_text, "\n".join(tables), encoding="utf-8")


async def _table(cost: EngineCost, stream_count: int, sampling: Sampling) -> str:
    engine, on_cuda = cost.engines.speech, cost.engines.speech.model.device.type == "cuda"
    steps, frames = cost.spoken.steps, cost.spoken.frames[:PROFILED_FRAMES]
    cost = replace(cost, spoken=replace(cost.spoken, steps=steps[: frames[-1].step_count], frames=frames))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    profiler = profile(activities=activities)
    # A profiler sees the thread that starts it.
    await engine.call(profiler.start)
    try:
        await cost.speech(sampling, stream_count)
        if on_cuda:
            await engine.call(torch.cuda.synchronize)
    finally:
        await engine.call(profiler.stop)
    sort_by = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    operations = profiler.key_averages().table(sort_by=sort_by, row_limit=LISTED_OPERATIONS, max_name_column_width=60)
    return (
        f"{engine.slot_count} slots, {stream_count} live: one prefill of the voice and "
        f"{len(frames)} rounds of {stream_count} frames\n{operations}"
    )
