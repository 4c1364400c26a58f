"""Files that name the samples a run skipped, one for each process and checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import attrs

from mobileclip import storage
from mobileclip.data import Skip

FOLDER = "skipped"
_NAME = re.compile(r"step-(\d{8})\.process-\d+\.jsonl")


@attrs.frozen
class SkippedFolder:
    """The samples and shards that were left out, one a line with its reason; their number is in the checkpoints.

    Args:
        path: the folder; created when the first file is written.
    """

    path: str

    def write(self, skips: Sequence[Skip], *, step: int, rank: int) -> None:
        """Write what a process left out since the checkpoint before, if it is anything.

        Args:
            skips: of the batches up to the step.
            step: of the checkpoint that comes next.
            rank: of the process.

        Raises:
            OSError: if they cannot be written.
        """
        if skips:
            storage.make_directory(self.path)
            lines = (json.dumps(attrs.asdict(skip)) + "\n" for skip in skips)
            storage.write_text(storage.join(self.path, f"step-{step:08d}.process-{rank}.jsonl"), "".join(lines))

    def forget_after(self, step: int) -> None:
        """Remove what was written after a step, which comes again."""
        for path in storage.list_files(self.path):
            found = _NAME.fullmatch(storage.file_name(path))
            if found is not None and int(found[1]) > step:
                storage.remove(path)
