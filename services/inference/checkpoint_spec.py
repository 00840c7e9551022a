"""What `--checkpoint` may name."""

from pathlib import Path

from services.inference.checkpoint import Checkpoint, StoredCheckpoint
from services.inference.random_checkpoint import RANDOM, RandomCheckpoint


def open_checkpoint(spec: str) -> Checkpoint:
    """Opens a directory in the published layout, or `random:<shape>[:<seed>]`; raises CheckpointError."""
    return RandomCheckpoint.parse(spec) if spec.startswith(RANDOM) else StoredCheckpoint(Path(spec))
