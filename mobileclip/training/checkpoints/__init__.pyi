from .checkpoint import CheckpointFolder as CheckpointFolder, RunState as RunState
from .state_file import (
    DIGEST as DIGEST,
    StateFile as StateFile,
    digest as digest,
    mark as mark,
    read_state as read_state,
)
from .writing import BackgroundWriter as BackgroundWriter
