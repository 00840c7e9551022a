"""What results are to reach."""

from collections.abc import Mapping
from dataclasses import dataclass

from client.errors import InputError
from client.evaluate.scores import SHARES, Scores

LONGEST = "longest"
EXPECTED = (
    f"expected [GROUP:]MEASURE=NUMBER with commas between them, where a measure is {', '.join(SHARES)} or {LONGEST}"
)


@dataclass(frozen=True)
class Requirement:
    """A share that a measure is to reach at least, or `longest` at most; `group` None is about all questions."""

    group: str | None
    measure: str
    limit: float

    def shortfall(self, scores: Mapping[str | None, Scores]) -> str | None:
        """What is missing, in words; None where it is met. None among the keys of `scores` are all questions."""
        of_group = scores[self.group]
        found = getattr(of_group, self.measure)
        if found is not None and (found <= self.limit if self.measure == LONGEST else found >= self.limit):
            return None
        name = self.measure if self.group is None else f"{self.group}:{self.measure}"
        bound = "at most" if self.measure == LONGEST else "at least"
        return f"{name} is {'not known' if found is None else f'{found:.4g}'}, required is {bound} {self.limit:g}"


def read_requirements(text: str | None) -> tuple[Requirement, ...]:
    """The requirements of "exact=0.9,strangers:exact=0.8,longest=2"; InputError when it is something else."""
    return tuple(_read(part.strip()) for part in text.split(",")) if text is not None else ()


def _read(text: str) -> Requirement:
    name, _, number = text.rpartition("=")
    group, _, measure = name.rpartition(":")
    try:
        limit = float(number)
    except ValueError:
        limit = -1.0
    if measure not in (*SHARES, LONGEST) or not 0 <= limit <= (float("inf") if measure == LONGEST else 1):
        raise InputError(f"--require: {EXPECTED}; got {text!r}")
    return Requirement(group or None, measure, limit)
