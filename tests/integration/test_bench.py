"""`chroma-mesh bench` through real meshes: what it counts and writes, never how fast it was."""

import json
from pathlib import Path
from typing import Any

import psutil


def content(folder: Path) -> dict[str, Any]:
    """The report in JSON; its files are all there."""
    assert {path.name for path in folder.iterdir()} == {"bench.json", "bench.md", "bench.png"}
    read: dict[str, Any] = json.loads((folder / "bench.json").read_text())
    return read


def test_a_mesh_that_runs_is_measured_and_left_as_it_was(mesh, cli, tmp_path):
    before = cli("voices", "--address", mesh.address).stdout
    result = cli(
        *("bench", "--address", mesh.address, "--sessions", "1,3", "--replies", "2", "--rate", "4", "--duration", "1"),
        *("--frames", "12", "--user-seconds", "1", "--voice-seconds", "2", "--out", str(tmp_path / "out")),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert cli("voices", "--address", mesh.address).stdout == before
    report = content(tmp_path / "out")
    assert report["is_partial"] is False
    assert report["shape"] == {"frame_count": 12, "step_count": 4, "user_seconds": 1}
    assert report["voice"]["example_seconds"] == 2
    assert report["sameness"] == {"compared_count": 2, "different_count": 0}
    one, three, opened = report["loads"]
    assert [load["summary"]["reply_count"] for load in (one, three)] == [2, 6]
    assert opened["summary"]["reply_count"] == opened["summary"]["turn_count"] == len(opened["replies"]) > 0
    for load in report["loads"]:
        assert load["failures"] == []
        summary = load["summary"]
        assert summary["continuity_count"] + summary["empty_count"] <= summary["reply_count"]
        assert summary["short_count"] == sum(sum(reply["packet_frame_count"]) < 12 for reply in load["replies"])
        for reply in load["replies"]:
            assert sum(reply["packet_frame_count"]) <= 12
            assert sum(reply["packet_byte_count"]) == sum(reply["packet_frame_count"]) * 1920 * 2
            assert reply["packet_seconds"] == sorted(reply["packet_seconds"])
            assert reply["step_count"] <= 4
            timings = reply["timings"]
            parts = {part["name"]: part["seconds"] for part in timings["parts"]}
            assert parts["first_step"] > 0
            assert parts["first_frame"] > 0
            assert parts["decode"] > 0
            assert abs(sum(parts.values()) - timings["first_audio_seconds"]) < 1e-4
    assert all(reply["lateness_seconds"] is not None for reply in opened["replies"])


def test_a_mesh_of_its_own_is_measured_with_its_processes_and_stopped(cli, tmp_path):
    result = cli(
        *("bench", "--checkpoint", "random:tiny", "--device", "cpu", "--threads", "1", "--sessions", "2", "--live"),
        *("--replies", "1", "--frames", "6", "--user-seconds", "0.5", "--voice", "birch", "--out", str(tmp_path)),
    )
    assert (result.returncode, result.stderr) == (0, "")
    report = content(tmp_path)
    (load,) = report["loads"]
    assert load["label"] == "2 live"
    assert len(load["replies"]) == 2
    names = [use["name"] for use in load["processes"]]
    assert names == ["reasoner", "speech", "codec", "orchestrator", "driver"]
    assert all(use["peak_resident_bytes"] > 0 for use in load["processes"])
    assert not any(psutil.pid_exists(use["pid"]) for use in load["processes"])
    assert report["mesh"]["settings"]["checkpoint"] == "random:tiny"
    assert report["voice"] == {
        "name": "birch",
        "example_seconds": report["voice"]["example_seconds"],
        "was_made": False,
    }
    for said in ("Throughput", "Most resident memory by process, MB", "2 live", "6 frames to 2 reasoner steps"):
        assert said in result.stdout
