"""`chroma-mesh evaluate` through a real mesh on random weights: what it counts and writes; nothing said is right."""

import json
from pathlib import Path

import soundfile

import client

QUESTION = Path(client.__file__).parent / "data" / "question.wav"


def test_a_set_is_judged(mesh, cli, tmp_path):
    spoken = {"audio": str(QUESTION), "asked": "a question", "answer": "four", "reference_seconds": 1.0}
    conversations = [
        {"group": "anew", "turns": [spoken, {"text": "and minus one", "answer": "three", "group": "later"}]},
        {"group": "strangers", "turns": [spoken]},
    ]
    (tmp_path / "questions.json").write_text(
        json.dumps({"sentences": ["three", "four"], "conversations": conversations})
    )
    arguments = ("--address", mesh.address, "--max-frames", "12", "--sessions", "2")
    files = ("--json", str(tmp_path / "report.json"), "--out", str(tmp_path / "out"))
    result = cli("evaluate", str(tmp_path), *arguments, *files, "--require", "exact=0.1,longest=1")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "exact is 0, required is at least 0.1" in result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["scores"]["exact"] == report["scores"]["choice"] == 0
    assert report["scores"]["ended"] == sum(turn["reason"] == "STOP" for turn in report["turns"]) / 3
    assert [report["groups"][name]["question_count"] for name in ("anew", "later", "strangers")] == [1, 1, 1]
    assert len(report["voices"]) > 1
    assert [(turn["conversation_index"], turn["turn_index"]) for turn in report["turns"]] == [(0, 0), (0, 1), (1, 0)]
    for turn in report["turns"]:
        assert turn["failure"] is None
        assert turn["frame_count"] <= 12
        assert turn["audio_seconds"] * 24_000 == turn["frame_count"] * 1920
        assert turn["judgement"]["exact"] is False
        assert set(turn["judgement"]["similarities"]) in (set(report["voices"]), set())
        (path,) = (tmp_path / "out").glob(f"{turn['index']:04d}-*.wav")
        assert soundfile.info(path).frames == turn["frame_count"] * 1920
    assert (tmp_path / "out" / "evaluation.png").stat().st_size > 1000


def test_sound_files_are_judged_without_answers(mesh, cli, tmp_path):
    report = tmp_path / "report.json"
    result = cli("evaluate", str(QUESTION), "--address", mesh.address, "--max-frames", "6", "--json", str(report))
    assert (result.returncode, result.stderr) == (0, "")
    (turn,) = json.loads(report.read_text())["turns"]
    assert (turn["asked"], turn["expected"], turn["judgement"]["choice"]) == ("question.wav", None, None)
