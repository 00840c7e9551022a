"""`python tests/gpu/summary.py FOLDER`: the figures that run.sh found, beside what they have to reach."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLACEMENTS = ("colocated", "separate")
LOADS = ("alone", "live", "closed")
COLUMNS = (11, 18, 8, 7, 9, 9, 9, 7, 7, 7, 9, 9)
HEAD = (
    *("stages", "load", "replies", "failed", "TTFT p50", "TTFA p50", "TTFA p95", "RTF", "C50 %", "C100 %"),
    *("late p95", "audio s/s"),
)
TARGETS = (
    "1 session: TTFA p50 at most 60 ms (aim 40), RTF at most 0.08 (aim 0.05)",
    "128 live sessions: C50 at least 99 %, TTFA p95 at most 300 ms (aim 256)",
)


def main(folder: Path) -> None:
    """Prints everything; what was not measured is left out."""
    say("\n== parts: exit status, seconds")
    parts = folder / "parts.txt"
    for line in parts.read_text(encoding="utf-8").splitlines() if parts.exists() else ():
        name, status, seconds = line.split()
        say(f"{name:18} {status:>9} {seconds:>5} s{'  <-- look at its log' if status != '0' else ''}")
    say("\n== start of the meshes")
    for placement in PLACEMENTS:
        up = folder / f"{placement}-up.log"
        for line in up.read_text(encoding="utf-8").splitlines() if up.exists() else ():
            if "ready at" in line:
                say(f"{placement:11} {line}")
    engines(folder / "engines.json")
    loads = [(placement, load) for placement in PLACEMENTS for load in measured(folder, placement)]
    meshes(loads)
    verdicts(loads)


def measured(folder: Path, placement: str) -> Iterator[dict[str, Any]]:
    """The loads of one placement, with the shape of their replies."""
    for name in LOADS:
        if (report := read(folder / f"{placement}-{name}" / "bench.json")) is not None:
            for load in report["loads"]:
                yield load | {"shape": report["shape"]}


def read(file: Path) -> dict[str, Any] | None:
    """A report; None where none was written, or only a part of it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    assert isinstance(content, dict)
    return content


def engines(file: Path) -> None:
    """The engines without a mesh."""
    report = read(file)
    if report is None:
        say("\n== the engines were not measured")
        return
    shape = report["shape"]
    say(
        f"\n== engines in one process: {report['checkpoint']} on {report['device']}, {report['dtype']}, "
        f"{shape['frame_count']} frames to {shape['step_count']} steps"
    )
    for table in report["tables"]:
        say(table["title"])
        rows = [table["columns"], *table["rows"]]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def meshes(loads: list[tuple[str, dict[str, Any]]]) -> None:
    """All loads on all placements."""
    if not loads:
        say("\n== no mesh was measured")
        return
    shape = loads[0][1]["shape"]
    say(
        f"\n== mesh: {shape['frame_count']} frames to {shape['step_count']} steps after {shape['user_seconds']:g} s of "
        "the user's speech, a voice of 10 s; times in ms; RTF with the time to first audio, p50; late: the driver"
    )
    say(row(HEAD))
    for placement, load in loads:
        summary = load["summary"]
        failed = sum((summary["refusals"] | summary["errors"]).values())
        cells = (
            placement,
            load["label"] + ("" if load["is_complete"] else " (cut)"),
            str(summary["reply_count"]),
            str(failed),
            thousandfold(summary, "ttft", "p50"),
            thousandfold(summary, "ttfa", "p50"),
            thousandfold(summary, "ttfa", "p95"),
            number(value(summary, "rtf_with_first_audio", "p50"), 1, 3),
            number(summary["continuity_50"], 100, 1),
            number(summary["continuity_100"], 100, 1),
            thousandfold(summary, "lateness", "p95"),
            number(summary["audio_seconds_per_second"], 1, 1),
        )
        say(row(cells))


def verdicts(loads: list[tuple[str, dict[str, Any]]]) -> None:
    """What has to be reached, and what was."""
    say("\n== to be reached")
    for target in TARGETS:
        say(target)
    for placement, load in loads:
        summary, label = load["summary"], load["label"]
        p50, p95 = value(summary, "ttfa", "p50"), value(summary, "ttfa", "p95")
        rtf, c50 = value(summary, "rtf_with_first_audio", "p50"), summary["continuity_50"]
        if None in (p50, p95, rtf, c50) or not load["is_complete"]:
            continue
        failed = sum((summary["refusals"] | summary["errors"]).values())
        if load["load"]["session_count"] == 1:
            reached = p50 <= 0.060 and rtf <= 0.08
            say(f"{placement}, {label}: {p50 * 1000:.1f} ms, {rtf:.3f}: {'reached' if reached else 'MISSED'}")
        elif load["load"]["is_live"]:
            reached = c50 >= 0.99 and p95 <= 0.300 and not failed
            said = f"{c50:.1%}, {p95 * 1000:.1f} ms, {failed} failed"
            say(f"{placement}, {label}: {said}: {'reached' if reached else 'MISSED'}")


def value(summary: dict[str, Any], name: str, rank: str) -> Any:
    """A figure of a spread; None of none."""
    return None if summary[name] is None else summary[name][rank]


def thousandfold(summary: dict[str, Any], name: str, rank: str) -> str:
    """Seconds of a spread, in milliseconds."""
    return number(value(summary, name, rank), 1000, 1)


def number(figure: float | None, factor: float, digits: int) -> str:
    """A figure as it is printed."""
    return "-" if figure is None else f"{figure * factor:.{digits}f}"


def row(cells: tuple[str, ...]) -> str:
    """Words to the left, numbers to the right."""
    pairs = zip(cells, COLUMNS, strict=True)
    return " ".join(cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(pairs))


def say(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
