"""Training checkpoints: what is in them, how they are written in the background, and which are kept.

When a run writes one does not belong here, see `saving`.
"""

from mobileclip.training.checkpoints.background_writer import BackgroundWriter as BackgroundWriter
from mobileclip.training.checkpoints.checkpoint import CheckpointFolder as CheckpointFolder, RunState as RunState
from mobileclip.training.checkpoints.state_file import (
    DIGEST as DIGEST,
    StateFile as StateFile,
    digest as digest,
    mark as mark,
    read_state as read_state,
)
