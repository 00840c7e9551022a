"""What a benchmark shows and writes."""

import io
import json
from datetime import UTC, datetime

import pytest
from rich.console import Console

from client.bench.engine_part import read_engine_part
from client.bench.gpu_memory import GpuCard, GpuProcess, GpuUse
from client.bench.load import ClosedLoop, LoadRecord, OpenLoop
from client.bench.machine import Machine, this_machine
from client.bench.plot import plot, write_plot
from client.bench.process_use import ProcessUse
from client.bench.reply_record import Failure
from client.bench.report import MeasuredVoice, Report, described, markdown, report_json, write_json
from client.bench.settings import BenchSettings
from client.bench.shape import ReplyShape
from client.bench.tables import remarks, tables
from client.mesh_settings import MeshSettings
from client.report_table import ReportTable, digits, milliseconds

ENGINE = {
    "tables": [{"title": "Floor", "columns": ["part", "ms"], "rows": [["depth decoder", 1.23456], ["all", 12]]}],
    "values": {"direct_frame_seconds": 0.08},
}


@pytest.fixture
def report(new_reply) -> Report:
    """A closed loop at 1 and 2 sessions and an open one, with everything there is."""
    one, two = ClosedLoop(1, 2, is_live=False), ClosedLoop(2, 2, is_live=False)
    opened = OpenLoop(0.5, 10)
    settings = BenchSettings(
        shape=ReplyShape(frame_count=3, step_count=2, user_seconds=3),
        loads=(one, two, opened),
        voice=None,
        voice_seconds=10,
    )
    uses = [ProcessUse("reasoner", 10, 1.25, 400_000_000), ProcessUse("driver", 11, 0.5, 90_000_000)]
    records = [
        LoadRecord(load, replies=replies, wall_seconds=wall, processes=uses, is_complete=True)
        for load, replies, wall in (
            (one, [new_reply(0.1, 0.2, 0.3)] * 2, 0.72),
            (two, [new_reply(0.2, 0.3, 0.4)] * 4, 0.9),
            (opened, [new_reply(1.5, 1.6, 1.9, lateness_seconds=0.002)], 3.0),
        )
    ]
    records[0].warm_ups, records[1].warm_ups = [new_reply(0.1, seed=7)], [new_reply(0.1, seed=7)]
    records[0].gpu = GpuUse([GpuProcess("speech", 12, 2_000_000_000)], 3_000_000_000)
    refused = Failure(0, 3, 0.1, 0.02, "RESOURCE_EXHAUSTED", "NO_CAPACITY", "there is no room", is_warm_up=False)
    records[2].failures = [refused]
    return Report(
        settings=settings,
        mesh=MeshSettings(checkpoint="random:tiny", threads=1),
        address="127.0.0.1:1",
        command="chroma-mesh bench",
        started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        machine=Machine(
            "Linux", "A CPU", 8, 2, 2**34, "CPython 3.11", {"grpcio": "1"}, {}, [GpuCard("A card", "555", 8, 4)]
        ),
        voice=MeasuredVoice("bench-1", 10.0, was_made=True),
        records=records,
        engine=read_engine_part(json.dumps(ENGINE)),
        is_partial=False,
    )


def shown(table: ReportTable, width: int) -> list[str]:
    """The lines that a terminal of this width shows of a table."""
    text = io.StringIO()
    Console(file=text, width=width).print(table.rich())
    return [line.rstrip() for line in text.getvalue().splitlines()]


def cells(report: Report, title: str) -> list[list[str]]:
    """The rows of a table."""
    (table,) = (table for table in tables(report) if table.title.startswith(title))
    assert all(len(row) == len(table.columns) for row in table.rows)
    return [list(row) for row in table.rows]


def test_the_tables_say_what_was_found(report):
    titles = [table.title for table in tables(report)]
    assert titles == [
        "Throughput",
        "Latency from the end of the user's turn, ms",
        "Where the time to the first audio goes, mean ms",
        "Steadiness, times in ms",
        "Open loop, times in ms",
        "Turns without a reply",
        "CPU seconds by process",
        "Most resident memory by process, MB",
        "GPU memory by process, MB",
        "Floor",
    ]
    one, two, opened = cells(report, "Throughput")
    assert one == ["1 session", "2", "0", "0.48", "0.72", "0.67", "8.33", "120", "1.00 ×", "1.250", "1.250"]
    assert (two[0], two[8]) == ("2 sessions", "1.60 ×")
    assert (opened[0], opened[2], opened[8]) == ("0.5 turns/s", "1", "–")
    assert cells(report, "Latency")[0] == ["1 session", *["10.0"] * 3, *["30.0"] * 3, *["100"] * 3]
    assert cells(report, "Latency")[2][7:] == ["1,500"] * 3
    assert cells(report, "Where")[0] == ["1 session", "3.00", "9.00", "18.0", "5.00", "65.0", "100"]
    assert cells(report, "Steadiness")[2][4:] == ["240", "240", "240", "0.0", "0.0", "1", "1/3840"]
    assert cells(report, "Open loop") == [["0.5 turns/s", "7", "1", "1", "20.0", "0", "1", "2.00", "2.00", "2.00"]]
    assert cells(report, "Turns") == [["0.5 turns/s", "refused", "RESOURCE_EXHAUSTED NO_CAPACITY", "1"]]
    assert cells(report, "CPU")[0] == ["1 session", "1.2", "0.5"]
    assert cells(report, "Most")[0] == ["1 session", "400", "90"]
    assert cells(report, "GPU") == [["1 session", "2,000", "3,000"]]
    assert cells(report, "Floor") == [["depth decoder", "1.235"], ["all", "12"]]


def test_the_tables_fit_a_hundred_columns(report, new_reply):
    for record in report.records:  # times of a slow machine
        record.replies = [new_reply(12.5, 14.5, 19.75, lateness_seconds=0.123)] * 1000
    for table in tables(report):  # their notes are wrapped, cells must not be
        wide = shown(ReportTable(table.title, table.columns, table.rows), 200)
        assert shown(ReportTable(table.title, table.columns, table.rows), 100) == wide


def test_the_remarks_say_what_is_odd(report, new_reply):
    same, over = remarks(report)
    assert same == "1 of 1 warm-up replies that an earlier load gave as well have the same bytes."
    assert over == (
        "At one session a frame takes 100 ms through the mesh and 80.0 ms with the engines called directly in one "
        "process, from the end of the turn to the last sound: the mesh costs +25.0 %."
    )
    report.records[0].replies = [new_reply(), new_reply(0.1, 0.2)]
    report.records[1].replies = [new_reply(0.1, 0.2, 0.3, step_count=1)]
    report.records[1].warm_ups = [new_reply(seed=7, digest="other")]
    report.is_partial = True
    assert remarks(report)[:3] == [
        "2 of 4 replies ended by themselves before 3 frames, 1 of them without any sound.",
        "1 of 4 replies had their text end before 2 steps.",
        "0 of 1 warm-up replies that an earlier load gave as well have the same bytes.",
    ]
    assert remarks(report)[-1].startswith("This is partial")


def test_the_json_has_everything(report, tmp_path):
    write_json(report, tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content == report_json(report)
    assert content["command"] == "chroma-mesh bench"
    assert content["machine"]["cpu"] == "A CPU"
    assert content["mesh"]["settings"]["checkpoint"] == "random:tiny"
    assert content["shape"] == {"frame_count": 3, "step_count": 2, "user_seconds": 3}
    assert content["voice"]["example_seconds"] == 10
    assert [load["kind"] for load in content["loads"]] == ["ClosedLoop", "ClosedLoop", "OpenLoop"]
    load = content["loads"][2]
    assert load["load"] == {"rate_hz": 0.5, "duration_seconds": 10}
    assert load["summary"]["refusals"] == {"RESOURCE_EXHAUSTED NO_CAPACITY": 1}
    assert load["failures"][0]["message"] == "there is no room"
    (reply,) = load["replies"]
    assert reply["packet_seconds"] == [1.5, 1.6, 1.9]
    assert (reply["packet_frame_count"], reply["packet_byte_count"]) == ([1, 1, 1], [3840, 3840, 3840])
    assert reply["reason"] == "LENGTH"
    assert content["engine"] == ENGINE
    assert content["mesh_over_engines"]["share"] == pytest.approx(0.25)
    assert content["is_partial"] is False


def test_the_header_says_on_what_it_was_measured(report):
    said = dict(described(report))
    assert said["machine"] == "A CPU, 2 of 8 cores, 16 GiB, A card (driver 555)"
    assert said["mesh"].startswith("random:tiny, ")
    assert "threads 1" in said["mesh"]
    assert said["every reply"].startswith("3 frames to 2 reasoner steps, after 3 s of the user's speech")
    assert said["voice"].startswith("10 s, made for the run")
    report.mesh, report.address = None, "there:1"
    assert dict(described(report))["mesh"].startswith("running at there:1")


def test_the_markdown_has_the_tables(report):
    text = markdown(report, "\n".join(table.markdown() for table in tables(report)))
    assert text.startswith("# Benchmark\n\n- command: `chroma-mesh bench`\n")
    assert "### Throughput\n\n| load | replies |" in text
    assert "Partial" not in text
    report.is_partial = True
    assert "**Partial: the run was stopped before its end.**" in markdown(report, "")
    assert ReportTable("T", ["a|b", "c\nd"], [["x|y", "1"]]).markdown() == (
        "### T\n\n| a\\|b | c d |\n| --- | ---: |\n| x\\|y | 1 |\n"
    )


def test_the_figure_has_a_column_for_each_kind_of_load(report, tmp_path):
    figure = plot(report)
    labels = [axes.get_xlabel() for axes in figure.axes[2:]]
    assert labels == ["sessions, turns back to back", "turns per second, Poisson arrivals"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["time to first audio, ms", "replies, %"]
    p50 = figure.axes[0].get_lines()[-1]
    assert list(p50.get_xdata()) == [1, 2]
    assert list(p50.get_ydata()) == pytest.approx([100, 200])
    assert figure.axes[0].get_ylim()[1] > 1500  # the open loop's latency is on the same scale
    write_plot(report, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    report.records = report.records[:1]
    assert len(plot(report).axes) == 2
    report.records = []
    assert not plot(report).axes


def test_a_load_without_replies_is_shown_all_the_same(report, tmp_path):
    for record in report.records:
        record.replies, record.wall_seconds, record.is_complete = [], 0.0, False
    assert cells(report, "Throughput")[0] == ["1 session (cut)", "0", "0", "0.00", "0.00", *["–"] * 6]
    assert report.mesh_over_engines is None
    write_json(report, tmp_path / "bench.json")
    write_plot(report, tmp_path / "bench.png")


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "–"), (0, "0.00"), (9.994, "9.99"), (9.996, "10.0"), (99.94, "99.9"), (99.96, "100"), (12345.6, "12,346")],
)
def test_numbers_have_three_digits(number, text):
    assert digits(number) == text
    assert milliseconds(None if number is None else number / 1000) == text


async def test_this_machine_is_described():
    machine = await this_machine()
    assert machine.cpu
    assert 1 <= machine.usable_core_count <= machine.core_count
    assert machine.memory_bytes > 2**20
    assert machine.versions["grpcio"]
