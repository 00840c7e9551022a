"""The figures of a benchmark as tables."""

from collections.abc import Callable, Sequence

from client.bench.flatness import Flatness, flatness_tables
from client.bench.load import LoadRecord, OpenLoop
from client.bench.process_use import ProcessUse
from client.bench.report import Report
from client.bench.summary import LoadSummary, Spread, first_audio_parts
from client.report_table import NONE, ReportTable, digits, megabytes, milliseconds, percent

Row = tuple[LoadRecord, LoadSummary]

PERCENTILES = (
    "Percentiles are by nearest rank: with fewer than 100 numbers p99 is the greatest, with fewer than 20 p95 too."
)


def tables(report: Report) -> list[ReportTable]:
    """All tables that there is something to say in."""
    rows = list(zip(report.records, report.summaries, strict=True))
    every = [
        throughput_table(rows),
        latency_table(rows),
        first_audio_table(rows, report.flatness),
        steadiness_table(rows),
        open_loop_table([row for row in rows if isinstance(row[0].load, OpenLoop)]),
        failures_table(rows),
        process_table(
            "CPU seconds by process",
            report.records,
            lambda use: f"{use.cpu_seconds:.1f}",
            lambda record: record.processes,
        ),
        process_table(
            "Most resident memory by process, MB",
            report.records,
            lambda use: megabytes(use.peak_resident_bytes),
            lambda record: record.processes,
        ),
        gpu_table(report.records),
        *flatness_tables(report.flatness),
        *(report.engine.tables if report.engine else []),
    ]
    return [table for table in every if table.rows]


def remarks(report: Report) -> list[str]:
    """What there is to say in sentences."""
    shape, summaries = report.settings.shape, report.summaries
    said = []
    short, empty = sum(s.short_count for s in summaries), sum(s.empty_count for s in summaries)
    if short:
        said.append(
            f"{short} of {report.reply_count} replies ended by themselves before {shape.frame_count} frames"
            + (f", {empty} of them without any sound." if empty else ".")
        )
    if short_text := sum(s.short_text_count for s in summaries):
        said.append(
            f"{short_text} of {report.reply_count} replies had their text end before {shape.spoken_step_count} steps."
        )
    same = report.sameness
    if same.compared_count:
        said.append(
            f"{same.compared_count - same.different_count} of {same.compared_count} warm-up replies that an earlier "
            "load gave as well have the same bytes."
        )
    if over := report.mesh_over_engines:
        said.append(
            f"At one session a frame takes {milliseconds(over.mesh_seconds)} ms through the mesh and "
            f"{milliseconds(over.engine_seconds)} ms with the engines called directly in one process, from the end of "
            f"the turn to the last sound: the mesh costs {over.share * 100:+.1f} %."
        )
    if report.is_partial:
        said.append("This is partial: the run was stopped before its end.")
    return said


def label(record: LoadRecord) -> str:
    """The load, and that it was cut where it was."""
    return record.load.label + ("" if record.is_complete else " (cut)")


def throughput_table(rows: Sequence[Row]) -> ReportTable:
    """How much came out."""
    return ReportTable(
        "Throughput",
        [
            "load",
            "replies",
            "failed",
            "audio\ns",
            "wall\ns",
            "audio s\nper s",
            "frames\nper s",
            "ms per\nframe",
            "over 1\nsession",
            "RTF\nwith TTFA",
            "RTF with-\nout TTFA",
        ],
        [
            [
                label(record),
                str(summary.reply_count),
                str(sum((summary.refusals | summary.errors).values())),
                digits(summary.audio_seconds),
                digits(summary.wall_seconds),
                digits(summary.audio_seconds_per_second),
                digits(summary.frames_per_second),
                milliseconds(summary.seconds_per_frame),
                NONE if summary.speed_up is None else f"{summary.speed_up:.2f} ×",
                p50(summary.rtf_with_first_audio, lambda rtf: f"{rtf:.3f}"),
                p50(summary.rtf_without_first_audio, lambda rtf: f"{rtf:.3f}"),
            ]
            for record, summary in rows
        ],
        "ms per frame: wall time over all frames. RTF, p50 of replies, below 1 is faster than real time. With the "
        "time to first audio: end of turn → last packet, over all audio. Without it: first packet → last packet, over "
        "the audio after the first packet.",
    )


def latency_table(rows: Sequence[Row]) -> ReportTable:
    """How long callers wait."""
    kinds = ("TTFT", "TTFF", "TTFA")
    return ReportTable(
        "Latency from the end of the user's turn, ms",
        ["load", *(f"{kind}\n{rank}" for kind in kinds for rank in ("p50", "p95", "p99"))],
        [
            [label(record), *(cell for s in (summary.ttft, summary.ttff, summary.ttfa) for cell in percentile_cells(s))]
            for record, summary in rows
        ],
        "TTFT, TTFF: the reasoner's first step and the first frame of speech, as the mesh sees them. TTFA: the first "
        f"sound at the caller. {PERCENTILES}",
    )


def first_audio_table(rows: Sequence[Row], flatness: Flatness) -> ReportTable:
    """Where the wait goes."""
    every = [(label(record), summary.first_audio_parts) for record, summary in rows]
    every += [
        (f"{seconds} s of speech", first_audio_parts(by)) for seconds, by in flatness.by_utterance_seconds.items()
    ]
    every += [(f"turn {turn}", first_audio_parts(by)) for turn, by in flatness.by_turn.items()]
    known = [(load, parts) for load, parts in every if parts]
    columns = list(dict.fromkeys(part_column(name) for _, parts in known for name in parts.mesh))
    return ReportTable(
        "Where the time to the first audio goes, mean ms",
        ["load", *(column.replace(" ", "\n") for column in columns), "wire,\ncaller", "TTFA"],
        [
            [
                load,
                *(
                    milliseconds(sum(seconds for name, seconds in parts.mesh.items() if part_column(name) == column))
                    for column in columns
                ),
                milliseconds(parts.rest),
                milliseconds(parts.total),
            ]
            for load, parts in known
        ],
        "All before TTFA add up to it. Lost, queue, hops: of the three stages together. Lost: calls that came to "
        "nothing. Encode, prefill, voice prefill: what was left to do at the end of the turn, and when the first step "
        "came. Wire, caller: what the mesh did not see; in an open loop also opening the session and the driver's "
        "lateness.",
    )


def part_column(name: str) -> str:
    """The heading under which a part of the first audio stands: what every stage has stands under one."""
    for ending, heading in (("_lost", "lost"), ("_queue", "queue"), ("_hop", "hops")):
        if name.endswith(ending):
            return heading
    return name.replace("_", " ")


def steadiness_table(rows: Sequence[Row]) -> ReportTable:
    """Whether the sound goes on without a gap."""
    return ReportTable(
        "Steadiness, times in ms",
        [
            "load",
            *(f"frame\n{rank}" for rank in ("p50", "p95", "p99")),
            *(f"under-run\n{rank}" for rank in ("p50", "p95", "max")),
            "C50\n%",
            "C100\n%",
            "of\nreplies",
            "first\npacket",
        ],
        [
            [
                label(record),
                *percentile_cells(summary.frame_interval),
                *(p50(summary.under_run), p95(summary.under_run), maximum(summary.under_run)),
                percent(summary.continuity_50),
                percent(summary.continuity_100),
                str(summary.continuity_count),
                f"{p50(summary.first_packet_frames, whole)}/{p50(summary.first_packet_bytes, whole)}",
            ]
            for record, summary in rows
        ],
        "Frame: time between packets, for each frame they carry. Under-run: the greatest shortfall of a player that "
        "starts at the first packet. C50, C100: replies with at most 50 and 100 ms of it, of those of two packets or "
        "more. First packet: frames/bytes, p50.",
    )


def open_loop_table(rows: Sequence[Row]) -> ReportTable:
    """What became of turns that arrived whether there was room or not."""
    return ReportTable(
        "Open loop, times in ms",
        [
            "load",
            "turns",
            "answered",
            "refused",
            "refused\nin p95",
            "failed",
            "most replies\nat once",
            *(f"driver\nlate {rank}" for rank in ("p50", "p95", "max")),
        ],
        [
            [
                label(record),
                str(summary.turn_count),
                str(summary.reply_count),
                str(sum(summary.refusals.values())),
                p95(summary.refusal),
                str(sum(summary.errors.values())),
                str(summary.most_replies_at_once),
                *(p50(summary.lateness), p95(summary.lateness), maximum(summary.lateness)),
            ]
            for record, summary in rows
        ],
        "Poisson arrivals with a fixed seed. Latency counts from the planned arrival, the driver's lateness included, "
        "as does the time in which refused callers were told so.",
    )


def failures_table(rows: Sequence[Row]) -> ReportTable:
    """Turns that got no reply, by what came instead."""
    kinds = [
        [label(record), word, kind, str(count)]
        for record, summary in rows
        for word, counts in (("refused", summary.refusals), ("failed", summary.errors))
        for kind, count in sorted(counts.items())
    ]
    return ReportTable("Turns without a reply", ["load", "", "what the mesh answered", "turns"], kinds)


def process_table(
    title: str,
    records: Sequence[LoadRecord],
    cell: Callable[[ProcessUse], str],
    uses: Callable[[LoadRecord], Sequence[ProcessUse]],
) -> ReportTable:
    """One figure of every process."""
    names = list(dict.fromkeys(use.name for record in records for use in uses(record)))
    rows = []
    for record in records:
        cells = {use.name: cell(use) for use in uses(record)}
        if cells:
            rows.append([label(record), *(cells.get(name, NONE) for name in names)])
    return ReportTable(title, ["load", *names], rows)


def gpu_table(records: Sequence[LoadRecord]) -> ReportTable:
    """What processes hold on the cards."""
    known = [(record, record.gpu) for record in records if record.gpu is not None]
    names = list(dict.fromkeys(process.name for _, gpu in known for process in gpu.processes))
    rows = []
    for record, gpu in known:
        cells = {process.name: megabytes(process.used_bytes) for process in gpu.processes}
        rows.append([label(record), *(cells.get(name, NONE) for name in names), megabytes(gpu.used_bytes)])
    return ReportTable("GPU memory by process, MB", ["load", *names, "in use in all"], rows)


def percentile_cells(spread: Spread | None) -> list[str]:
    """p50, p95 and p99 in milliseconds."""
    return [NONE] * 3 if spread is None else [milliseconds(value) for value in (spread.p50, spread.p95, spread.p99)]


def whole(number: float) -> str:
    """A number that is a whole one."""
    return f"{number:.0f}"


def p50(spread: Spread | None, text: Callable[[float], str] = milliseconds) -> str:
    """The median as text."""
    return NONE if spread is None else text(spread.p50)


def p95(spread: Spread | None) -> str:
    """The 95th percentile in milliseconds."""
    return NONE if spread is None else milliseconds(spread.p95)


def maximum(spread: Spread | None) -> str:
    """The greatest in milliseconds."""
    return NONE if spread is None else milliseconds(spread.maximum)
