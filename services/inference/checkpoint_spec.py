"""What `--checkpoint` may name."""

from importlib import resources
from pathlib import Path

from services.inference.checkpoint import Checkpoint, StoredCheckpoint
from services.inference.random_checkpoint import RANDOM, RandomCheckpoint

MINI = "mini"
"""The checkpoint that ships with the package; a folder of that name is `./mini`."""


def open_checkpoint(spec: str) -> Checkpoint:
    """Opens a directory in the published layout, `mini`, or `random:<shape>[:<seed>]`; raises CheckpointError."""
    if spec.startswith(RANDOM):
        return RandomCheckpoint.parse(spec)
    return StoredCheckpoint(Path(str(resources.files(MINI))) / "checkpoint" if spec == MINI else Path(spec))
