"""The figure of a benchmark: latency and continuity against load."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from client.bench.load import ClosedLoop, OpenLoop
from client.bench.report import Report
from client.bench.summary import LoadSummary

Point = tuple[float, LoadSummary]


def plot(report: Report) -> Figure:
    """TTFA above C50: against sessions in the left column, against turns a second in the right one, as there are."""
    pairs = list(zip(report.records, report.summaries, strict=True))
    closed = [(float(r.load.session_count), s) for r, s in pairs if isinstance(r.load, ClosedLoop)]
    opened = [(r.load.rate_hz, s) for r, s in pairs if isinstance(r.load, OpenLoop)]
    is_live = any(isinstance(r.load, ClosedLoop) and r.load.is_live for r, _ in pairs)
    sessions = "live sessions" if is_live else "sessions, turns back to back"
    columns = [
        (name, sorted(points, key=lambda point: point[0]))
        for name, points in ((sessions, closed), ("turns per second, Poisson arrivals", opened))
        if points
    ]
    figure = Figure(figsize=(6.4 + 3.2 * (len(columns) - 1), 6.4), layout="constrained")
    if not columns:
        return figure
    axes = figure.subplots(
        *(2, len(columns)),
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=(3, 2),
        width_ratios=[max(2, len(points)) for _, points in columns],
    )
    for index, (name, points) in enumerate(columns):
        draw_latency(axes[0, index], points)
        draw_continuity(axes[1, index], points)
        axes[1, index].set_xlabel(name)
    axes[0, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylim(-4, 104)
    axes[0, 0].set_ylabel("time to first audio, ms")
    axes[1, 0].set_ylabel("replies, %")
    axes[0, 0].legend(title="TTFA from the end of the turn", frameon=False)
    axes[1, 0].legend(title="under-run", frameon=False, loc="lower left")
    figure.align_ylabels()
    shape = report.settings.shape
    what = report.mesh.checkpoint if report.mesh else report.address
    figure.suptitle(
        f"{what}: {shape.frame_count} frames to {shape.step_count} steps, {shape.user_seconds:g} s of user's speech"
        + (" (partial)" if report.is_partial else "")
    )
    return figure


def draw_latency(axes: Axes, points: Sequence[Point]) -> None:
    """TTFA's percentiles in milliseconds."""
    heard = [(x, summary.ttfa) for x, summary in points if summary.ttfa]
    for name, style in (("p99", "s:"), ("p95", "^--"), ("p50", "o-")):
        axes.plot([x for x, _ in heard], [getattr(ttfa, name) * 1000 for _, ttfa in heard], style, label=name)
    scale_loads(axes, points)


def draw_continuity(axes: Axes, points: Sequence[Point]) -> None:
    """C50 and C100 in percent."""
    split = [(x, s.continuity_50, s.continuity_100) for x, s in points if s.continuity_50 is not None]
    axes.plot([x for x, _, _ in split], [(c50 or 0) * 100 for _, c50, _ in split], "o-", label="C50: at most 50 ms")
    axes.plot(
        [x for x, _, _ in split], [(c100 or 0) * 100 for _, _, c100 in split], "^--", label="C100: at most 100 ms"
    )
    scale_loads(axes, points)


def scale_loads(axes: Axes, points: Sequence[Point]) -> None:
    """Loads at their places on a scale of doublings, each with its number."""
    places = [x for x, _ in points]
    if len(set(places)) > 1:
        axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def write_plot(report: Report, path: Path) -> None:
    """Writes the figure as PNG."""
    plot(report).savefig(path, dpi=150, format="png")
