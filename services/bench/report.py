"""The report: tables for people, numbers for machines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from services.bench.clock import ClockName
from services.bench.measurement import Round
from services.bench.shape import Cost, ReplyShape

CostOf = Callable[[Round], Cost]


@dataclass(frozen=True)
class Table:
    """A title over rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class ReportShape:
    """How the numbers came about."""

    frame_count: int
    step_count: int
    voice_seconds: float
    user_seconds: float
    slot_count: int
    round_count: int
    temperature: float
    top_k: int


@dataclass(frozen=True)
class Report:
    """What a run prints. values: seconds unless the name says ratio; medians over the rounds, least ones marked."""

    checkpoint: str
    device: str
    dtype: str
    threads: int
    clock: ClockName
    shape: ReportShape
    tables: list[Table]
    values: dict[str, float]


class Summary:
    """The rounds in numbers."""

    def __init__(self, rounds: Sequence[Round], shape: ReplyShape, slots: int, frame_audio_seconds: float) -> None:
        self._rounds = rounds
        self._shape = shape
        self._slots = slots
        self._frame_audio_seconds = frame_audio_seconds

    def values(self) -> dict[str, float]:
        """Flat names; a name's end says the unit."""
        singles: dict[str, CostOf] = {
            "floor": lambda r: r.floor,
            "engine": lambda r: r.engine,
            "engine_greedy": lambda r: r.engine_greedy,
            "baseline": lambda r: r.baseline,
            "baseline_greedy": lambda r: r.baseline_greedy,
        }
        batches: dict[str, CostOf] = {
            "floor_batch": lambda r: r.floor_batch,
            "engine_lone": lambda r: r.engine_lone,
            "engine_batch": lambda r: r.engine_batch,
        }
        values: dict[str, float] = {}
        for name, cost in singles.items():
            values |= self._cost_values(name, "frame", cost)
        for name, cost in batches.items():
            values |= self._cost_values(name, "round", cost)
        for name in ("floor_batch", "engine_batch"):
            values[f"{name}_frame_seconds"] = values[f"{name}_round_seconds"] / self._slots
        values |= {
            "engine_floor_ratio": values["engine_frame_seconds"] / values["floor_frame_seconds"],
            "engine_greedy_floor_ratio": values["engine_greedy_frame_seconds"] / values["floor_frame_seconds"],
            "engine_batch_floor_ratio": values["engine_batch_round_seconds"] / values["floor_batch_round_seconds"],
            "engine_baseline_ratio": values["engine_frame_seconds"] / values["baseline_frame_seconds"],
            "engine_greedy_baseline_ratio": (
                values["engine_greedy_frame_seconds"] / values["baseline_greedy_frame_seconds"]
            ),
            "invariance_cost_ratio": values["engine_lone_round_seconds"] / values["engine_frame_seconds"],
        }
        return values | self._direct_values()

    def _cost_values(self, name: str, output: str, cost: CostOf) -> dict[str, float]:
        costs = [cost(one) for one in self._rounds]
        whole = [one.frame_seconds(self._shape) for one in costs]
        return {
            f"{name}_{output}_seconds": median(whole),
            f"{name}_least_{output}_seconds": min(whole),
            f"{name}_speech_{output}_seconds": median(one.speech_frame_seconds for one in costs),
            f"{name}_reasoner_step_seconds": median(one.reasoner_step_seconds for one in costs),
            f"{name}_codec_{output}_seconds": median(one.codec_frame_seconds for one in costs),
        }

    def _direct_values(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, bursts in (
            ("direct", [one.direct for one in self._rounds]),
            ("direct_batch", [one.direct_batch for one in self._rounds]),
        ):
            first_audio = [seconds for one in bursts for seconds in one.first_audio_seconds]
            frames = [one.frame_seconds for one in bursts]
            values[f"{name}_frame_seconds"] = median(frames)
            values[f"{name}_least_frame_seconds"] = min(frames)
            values[f"{name}_first_audio_seconds"] = median(first_audio)
            values[f"{name}_most_first_audio_seconds"] = max(first_audio)
            values[f"{name}_audio_time_ratio"] = self._frame_audio_seconds / median(frames)
        values["direct_throughput_ratio"] = values["direct_frame_seconds"] / values["direct_batch_frame_seconds"]
        return values


def tables(values: dict[str, float], slots: int) -> list[Table]:
    """The values as people read them."""

    def milliseconds(*names: str) -> list[str]:
        return [f"{values[f'{name}_seconds'] * 1000:.3f}" for name in names]

    def ratio(numerator: str, denominator: str) -> str:
        return f"{values[numerator + '_seconds'] / values[denominator + '_seconds']:.2f}"

    def parts(name: str, output: str) -> list[str]:
        return milliseconds(
            f"{name}_{output}",
            f"{name}_least_{output}",
            f"{name}_speech_{output}",
            f"{name}_reasoner_step",
            f"{name}_codec_{output}",
        )

    frame = Table(
        "A frame of one stream, engines of one slot",
        [
            "what",
            "frame ms",
            "least ms",
            "speech frame ms",
            "reasoner step ms",
            "codec frame ms",
            "× floor",
            "× baseline",
        ],
        [
            [title, *parts(name, "frame"), ratio(f"{name}_frame", "floor_frame"), ratio(f"{name}_frame", against)]
            for title, name, against in (
                ("floor: the matrix products alone", "floor", "baseline_frame"),
                ("engines, sampled", "engine", "baseline_frame"),
                ("engines, greedy", "engine_greedy", "baseline_greedy_frame"),
                ("plain transformers, sampled", "baseline", "baseline_frame"),
                ("plain transformers, greedy", "baseline_greedy", "baseline_greedy_frame"),
            )
        ],
    )
    batch = Table(
        f"A round of {slots} slots, sampled",
        [
            "what",
            "round ms",
            "least ms",
            "speech round ms",
            "reasoner step ms",
            "codec round ms",
            "ms a frame",
            "× floor",
        ],
        [
            [
                title,
                *parts(name, "round"),
                f"{values[f'{name}_round_seconds'] * 1000 / live:.3f}",
                ratio(f"{name}_round", "floor_batch_round"),
            ]
            for title, name, live in (
                (f"floor: the matrix products of {slots} rows", "floor_batch", slots),
                ("engines, 1 live stream", "engine_lone", 1),
                (f"engines, {slots} live streams", "engine_batch", slots),
            )
        ],
    )
    invariance = Table(
        "What batch invariance costs a single stream: fixed shapes run all slots",
        ["engines", "frame ms", "× one slot"],
        [
            ["1 slot", *milliseconds("engine_frame"), "1.00"],
            [f"{slots} slots", *milliseconds("engine_lone_round"), f"{values['invariance_cost_ratio']:.2f}"],
        ],
    )
    direct = Table(
        f"Whole replies in one process, engines of {slots} slots, from the end of the user turn to the last sample",
        ["sessions", "first audio ms", "most ms", "ms a frame", "least ms", "audio s per s"],
        [
            [
                str(sessions),
                *milliseconds(
                    f"{name}_first_audio", f"{name}_most_first_audio", f"{name}_frame", f"{name}_least_frame"
                ),
                f"{values[f'{name}_audio_time_ratio']:.2f}",
            ]
            for sessions, name in ((1, "direct"), (slots, "direct_batch"))
        ],
    )
    return [frame, batch, invariance, direct]
