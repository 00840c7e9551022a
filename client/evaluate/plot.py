"""The figure of an evaluation: shares by group, voices, times."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from client.evaluate.report import Report
from client.evaluate.scores import SHARES

NAMES = {
    "exact": "text exact",
    "choice": "heard as\nits text",
    "answered": "heard as\nthe answer",
    "words": "words heard",
    "voice": "in its voice",
    "ended": "ended by\nitself",
}


def plot(report: Report) -> Figure:
    """Shares above, and below them voices on the left and times on the right."""
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    shares, voices, times = figure.subplot_mosaic([["shares", "shares"], ["voices", "times"]]).values()
    draw_shares(shares, report)
    draw_voices(voices, report)
    draw_times(times, report)
    for axes in (shares, voices, times):
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    what = report.mesh.checkpoint if report.mesh else report.address
    partial = " (partial)" if report.is_partial else ""
    figure.suptitle(f"{what}: {report.asked.name}, {len(report.judged)} questions{partial}")
    return figure


def draw_shares(axes: Axes, report: Report) -> None:
    """A bar for each measure of each group, in percent."""
    found = report.scores
    groups = report.asked.groups
    width = 0.8 / len(groups)
    for index, group in enumerate(groups):
        shares = [getattr(found[group], measure) for measure in SHARES]
        places = [place + (index - (len(groups) - 1) / 2) * width for place in range(len(SHARES))]
        known = [(place, share * 100) for place, share in zip(places, shares, strict=True) if share is not None]
        axes.bar([place for place, _ in known], [share for _, share in known], width * 0.9, label=group)
    axes.set_xticks(range(len(SHARES)), [NAMES[measure] for measure in SHARES])
    axes.set_ylim(0, 104)
    axes.set_ylabel("replies (words), %")
    axes.legend(frameon=False, ncols=len(groups), loc="lower center", bbox_to_anchor=(0.5, 1))


def draw_voices(axes: Axes, report: Report) -> None:
    """How near each reply is to its own voice and to the nearest other one: below the diagonal is right."""
    own: dict[str, list[tuple[float, float]]] = {}
    for answer, judgement in report.judged:
        others = [value for name, value in judgement.similarities.items() if name != answer.voice]
        if answer.voice in judgement.similarities and others:
            own.setdefault(answer.voice, []).append((judgement.similarities[answer.voice], max(others)))
    for voice, points in sorted(own.items()):
        axes.plot([x for x, _ in points], [y for _, y in points], ".", label=voice)
    if own:
        axes.axline((0.75, 0.75), slope=1, color="0.6", linewidth=1)
        axes.legend(frameon=False)
    axes.set_xlabel("similarity to its own voice's example")
    axes.set_ylabel("to the nearest other's")


def draw_times(axes: Axes, report: Report) -> None:
    """The share of replies whose first sample was there by a time."""
    for group in report.asked.groups:
        replies = [answer.reply for answer, _ in report.judged if answer.question.group == group and answer.reply]
        seconds = sorted(it.first_audio_seconds for it in replies if it.first_audio_seconds is not None)
        shares = [(index + 1) / len(seconds) * 100 for index in range(len(seconds))]
        axes.step([it * 1000 for it in seconds], shares, where="post", label=group)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 104)
    axes.set_xlabel("time to first audio, ms")
    axes.set_ylabel("replies, %")


def write_plot(report: Report, path: Path) -> None:
    """Writes the figure as PNG."""
    plot(report).savefig(path, dpi=150, format="png")
