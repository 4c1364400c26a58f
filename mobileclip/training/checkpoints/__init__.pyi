from .background_writer import BackgroundWriter as BackgroundWriter
from .checkpoint import CheckpointFolder as CheckpointFolder, RunState as RunState
from .state_file import (
    DIGEST as DIGEST,
    StateFile as StateFile,
    digest as digest,
    mark as mark,
    read_state as read_state,
)
