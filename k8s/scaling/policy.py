"""What decides how many replicas a stage has."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil, exp

from k8s.scaling.calls import HELD_SHARE, MAKING_SHARE, TICK_SECONDS
from k8s.scaling.costs import StageCost

# As k8s/components/autoscaling has them.
SYNC_SECONDS = 15
UP_FACTOR, UP_SECONDS = 2.0, 60
DOWN_WINDOW_SECONDS = 360
DOWN_SECONDS = 120
LEAST_REPLICAS = 2
TOLERANCE = 0.1
"""A target that is missed by less changes nothing: the autoscaler's own rule."""

# What it takes until a replica serves: a card, an image, 13 GB of weights, warming. An estimate.
LOAD_SECONDS = 180
# A pod that is to go keeps its card until what it has is done.
DRAIN_SECONDS = 90
# Scrape (15), rules and the autoscaler's own round (15).
LAG_SECONDS = 30


@dataclass(frozen=True)
class Load:
    """What there is to see of a stage: sessions of the whole mesh, and its replicas that serve."""

    stage: str
    cost: StageCost
    session_count: float
    replica_count: int

    @property
    def sessions_each(self) -> float:
        """Sessions for each replica."""
        return self.session_count / self.replica_count


Signal = Callable[[Load], float]


def sessions_share(load: Load) -> float:
    """Open sessions of those that the stage can carry."""
    return load.sessions_each / load.cost.slot_count


def slots_share(load: Load) -> float:
    """Slots in use, of all."""
    return min(1.0, load.sessions_each * HELD_SHARE[load.stage] / load.cost.slot_count)


def card_use(load: Load) -> float:
    """Share of time in which the card does anything: `DCGM_FI_DEV_GPU_UTIL`."""
    return load.cost.busy_share(load.sessions_each * MAKING_SHARE)


def queue_share(load: Load) -> float:
    """Share of streams that find no slot free at their replica."""
    return more_than(load.cost.slot_count - 1, load.sessions_each * HELD_SHARE[load.stage])


def late_share(load: Load) -> float:
    """Share of frames that come later than they are played."""
    return more_than(load.cost.most_streams, load.sessions_each * MAKING_SHARE)


def more_than(count: int, mean: float) -> float:
    """As `tail`, of a mean to a tenth of a stream."""
    return tail(count, round(mean, 1))


@cache
def tail(count: int, mean: float) -> float:
    """How likely it is that more than `count` streams are at one replica at a time, of a Poisson number of `mean`.

    Streams go to the replicas in turn and end when they do, so their number at one replica is spread at most like this.
    """
    if mean <= 0:
        return 0.0
    if mean > 600:
        return float(mean > count)
    term = total = exp(-mean)
    for index in range(1, count + 1):
        term *= mean / index
        total += term
    return max(0.0, 1.0 - total)


@dataclass(frozen=True)
class Policy:
    """How many replicas: a fixed number for `fixed_share` of the peak's sessions, or as many as bring each of the
    signals to its target. `down_share`: how many may go at a time, of those that are there; at least one.
    """

    name: str
    targets: tuple[tuple[Signal, float], ...] = ()
    fixed_share: float | None = None
    down_share: float = 0.0

    def wanted(self, load: Load) -> int:
        """Replicas that the signals ask for: the most of their answers."""
        return max(wanted(signal(load) / target, load.replica_count) for signal, target in self.targets)

    def fixed_count(self, peak_sessions: int, slot_count: int) -> int | None:
        """The fixed number of replicas, if it is one."""
        if self.fixed_share is None:
            return None
        return max(LEAST_REPLICAS, ceil(self.fixed_share * peak_sessions / slot_count))


def wanted(ratio: float, replica_count: int) -> int:
    """As the HorizontalPodAutoscaler counts: in proportion, unless it is nearly right."""
    return replica_count if abs(ratio - 1) <= TOLERANCE else ceil(ratio * replica_count)


SLOTS = (slots_share, 0.7)
SESSIONS = (sessions_share, 0.8)
QUEUE = (queue_share, 0.05)
LATE = (late_share, 0.01)

POLICIES = (
    Policy("fixed for the peak and a rush", fixed_share=1.4),
    Policy("fixed for half the peak", fixed_share=0.5),
    Policy("card use at 70 %", ((card_use, 0.7),), down_share=0.1),
    Policy("queue wait", (QUEUE,), down_share=0.1),
    Policy("frames late", (LATE,), down_share=0.1),
    Policy("slots at 70 %", (SLOTS,), down_share=0.1),
    Policy("sessions at 80 %", (SESSIONS,), down_share=0.1),
    Policy("as deployed", (SESSIONS, SLOTS, QUEUE, LATE)),
)
DEPLOYED = POLICIES[-1]

assert UP_SECONDS % TICK_SECONDS == SYNC_SECONDS % TICK_SECONDS == 0
