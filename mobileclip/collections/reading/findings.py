"""What a job has found in files since the last write to the index: rows, and files without rows."""

from __future__ import annotations

from collections import Counter

import attrs

from mobileclip.collections.reading.scanning import FoundFile
from mobileclip.collections.store.about import FinishedFile
from mobileclip.collections.store.rows import Row


@attrs.frozen(kw_only=True)
class Recognised:
    """A picture or a video whose content is in the index already.

    Args:
        file: that it is in.
        part: key of its sample, where the file holds several.
        sha256: of its content.
    """

    file: FoundFile
    part: str | None
    sha256: str


@attrs.define(kw_only=True, eq=False)
class Findings:
    """What was found; another process may have found it.

    Args:
        rows: of pictures that were encoded, and of files that cannot be read.
        recognised: what has its embeddings already.
        gone: paths of files that were read to their end, and keys of samples that they do not hold any more.
        finished: files of many pictures that were read to their end.
        unreadable: why each file that could not be read was not, naming it.
        uninstalled: what must be installed for other files, and how many these are.
        num_encoded: pictures among the rows.
        num_unchanged: samples that were in the index already.
    """

    rows: list[Row] = attrs.field(factory=list)
    recognised: list[Recognised] = attrs.field(factory=list)
    gone: list[tuple[str, str | None]] = attrs.field(factory=list)
    finished: list[FinishedFile] = attrs.field(factory=list)
    unreadable: list[str] = attrs.field(factory=list)
    uninstalled: Counter[str] = attrs.field(factory=Counter)
    num_encoded: int = 0
    num_unchanged: int = 0

    @property
    def num_rows(self) -> int:
        """How many rows there are, or will be."""
        return len(self.rows) + len(self.recognised)

    def add(self, other: Findings) -> None:
        """Take over what was found elsewhere."""
        for field in ("rows", "recognised", "gone", "finished", "unreadable"):
            getattr(self, field).extend(getattr(other, field))
        self.uninstalled.update(other.uninstalled)
        self.num_encoded += other.num_encoded
        self.num_unchanged += other.num_unchanged
