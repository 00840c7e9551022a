"""What the policies cost, as tables and as a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from k8s.scaling.calls import TICK_SECONDS, TICKS, day_of_calls
from k8s.scaling.costs import Machine
from k8s.scaling.mesh_day import MeshDay, run_day
from k8s.scaling.policy import DEPLOYED, POLICIES, Policy

PEAKS = (10, 100, 1_000, 10_000, 100_000)
SHOWN_PEAK = 1_000
SMOOTHED_TICKS = 120


@dataclass(frozen=True)
class Run:
    """A day under a policy."""

    machine: Machine
    peak_sessions: int
    policy: Policy
    day: MeshDay


def runs(machine: Machine, peaks: Sequence[int]) -> Iterator[Run]:
    """All policies on the same calls."""
    for peak in peaks:
        calls = day_of_calls(peak)
        for policy in POLICIES:
            yield Run(machine, peak, policy, run_day(calls, machine.costs, policy, peak))


def cost_table(found: list[Run]) -> str:
    """Card-hours, refused calls and replies without gaps of each policy, for each peak."""
    peaks = sorted({run.peak_sessions for run in found})
    rows = [
        f"| {found[0].machine.name} | " + " | ".join(f"{p:,} sessions" for p in peaks) + " |",
        "| --- |" + " ---: |" * len(peaks),
    ]
    for policy in POLICIES:
        days = [next(run.day for run in found if (run.policy, run.peak_sessions) == (policy, peak)) for peak in peaks]
        rows.append(f"| {policy.name} | " + " | ".join(cell(day) for day in days) + " |")
    return "\n".join(rows)


def cell(day: MeshDay) -> str:
    """Card-hours · refused · C50."""
    return f"{day.card_hours:,.0f} · {percent(day.refused_share)} · {percent(day.c50)}"


def percent(share: float) -> str:
    """Short, but never 0 or 100 for what is not, to one in a million."""
    text = f"{share * 100:.1f}"
    if text == "0.0" and share > 1e-6:
        return "<0.1"
    return ">99.9" if text == "100.0" and share < 1 - 1e-6 else text.removesuffix(".0")


def hot_table(run: Run) -> str:
    """How much of what its replicas could make each stage makes, by the time of day."""
    rows = ["| hour | " + " | ".join(run.day.busy) + " |", "| ---: |" + " ---: |" * len(run.day.busy)]
    for hour in (4, 9, 11, 15, 18, 22):
        tick = hour * 3600 // TICK_SECONDS + 60
        shares = [f"{busy[tick - 60 : tick + 60].mean() * 100:.0f} %" for busy in run.day.busy.values()]
        rows.append(f"| {hour} | " + " | ".join(shares) + " |")
    return "\n".join(rows)


def write_picture(fast: list[Run], slow: list[Run], path: Path) -> None:
    """The day under four policies above, and below what all of them cost and refuse at every size."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    upper, lower = figure.subplots(2, 2)
    names = {"sessions at 80 %", "slots at 70 %", "card use at 70 %", "fixed for half the peak"}
    shown = [run for run in fast if run.peak_sessions == SHOWN_PEAK and run.policy.name in names]
    draw_day(upper[0], shown)
    draw_hot(upper[1], next(run for run in slow if run.policy == DEPLOYED and run.peak_sessions == SHOWN_PEAK))
    draw_costs(lower[0], fast)
    draw_refusals(lower[1], fast)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def hours() -> NDArray[np.float64]:
    """The time of day of each tick."""
    return np.arange(TICKS) * TICK_SECONDS / 3600


def draw_day(axes: Axes, shown: list[Run]) -> None:
    """Sessions, and how many each policy has room for."""
    most = max(shown, key=lambda run: int(run.day.session_counts.max()))
    axes.fill_between(hours(), most.day.session_counts, color="0.85", label="sessions that want in")
    for run in shown:
        axes.plot(hours(), run.day.capacities, label=run.policy.name, linewidth=1.2)
    axes.set(
        title=f"Room for sessions, {SHOWN_PEAK:,} at the peak, {shown[0].machine.name}", xlabel="hour", xlim=(0, 24)
    )
    axes.legend(fontsize=8)


def draw_hot(axes: Axes, run: Run) -> None:
    """Which stage is hot when."""
    for stage, busy in run.day.busy.items():
        smooth = np.convolve(busy, np.ones(SMOOTHED_TICKS) / SMOOTHED_TICKS, mode="same")
        axes.plot(hours(), smooth * 100, label=stage)
    axes.axhline(100, color="red", linewidth=0.8)
    axes.set(
        title=f"% of what its replicas can make in time, {run.machine.name}, as deployed", xlabel="hour", xlim=(0, 24)
    )
    axes.legend(fontsize=8)


def draw_costs(axes: Axes, found: list[Run]) -> None:
    """Card-hours for each hour of a session, against the size of the mesh."""
    for policy in POLICIES:
        mine = [run for run in found if run.policy == policy]
        used = [run.day.session_counts.sum() * TICK_SECONDS / 3600 for run in mine]
        axes.plot([run.peak_sessions for run in mine], [r.day.card_hours / u for r, u in zip(mine, used, strict=True)],
                  marker="o", markersize=3, label=policy.name)  # fmt: skip
    axes.set(title="Card-hours for an hour of a session", xlabel="sessions at the peak", xscale="log", yscale="log")
    axes.legend(fontsize=7)


def draw_refusals(axes: Axes, found: list[Run]) -> None:
    """Refused calls against the size of the mesh."""
    for policy in POLICIES:
        mine = [run for run in found if run.policy == policy]
        axes.plot([run.peak_sessions for run in mine], [run.day.refused_share * 100 for run in mine],
                  marker="o", markersize=3, label=policy.name)  # fmt: skip
    axes.set(title="Refused calls, %", xlabel="sessions at the peak", xscale="log")
