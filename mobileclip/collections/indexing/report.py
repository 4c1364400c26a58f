"""The report of an index update: how many pictures were encoded, unchanged, removed or unreadable."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from mobileclip.data.skips import Skip
from mobileclip.engines import SetAside


@attrs.frozen(kw_only=True)
class IndexReport:
    """The report of an index update: numbers of pictures encoded, unchanged, moved, removed and unreadable.

    Args:
        num_encoded: new or changed ones.
        num_known: of new files or changed ones whose content had an embedding: moved files, copies, and files that
            were touched.
        num_unchanged: that were not looked at again.
        num_removed: that are gone, or moved.
        num_unreadable: files that could not be read before, and have not changed.
        unreadable: why each file that could not be read now was not, naming it.
        uninstalled: what must be installed for other files, with the command that does, and how many files these are;
            they are tried again each time.
        left_out: files of folders that are no pictures.
        set_aside: files that an engine has given up; the next run tries them again.
        missing: how many pictures are kept of each folder or file of the index that is not there now.
    """

    num_encoded: int
    num_known: int
    num_unchanged: int
    num_removed: int
    num_unreadable: int
    unreadable: tuple[str, ...]
    uninstalled: Mapping[str, int]
    left_out: tuple[Skip, ...]
    set_aside: tuple[SetAside, ...] = ()
    missing: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def num_left_out(self) -> int:
        """How much could not be read now, was set aside, or is not there now."""
        return len(self.unreadable) + len(self.set_aside) + len(self.missing)

    def __str__(self) -> str:
        """Say it in a line."""
        parts = [f"{self.num_encoded:,} encoded"]
        parts += [f"{self.num_known:,} recognised by their content"] if self.num_known else []
        parts += [f"{self.num_unchanged:,} as before"] if self.num_unchanged else []
        parts += [f"{self.num_removed:,} gone from where they were"] if self.num_removed else []
        unreadable = self.num_unreadable + len(self.unreadable)
        parts += [f"{unreadable:,} cannot be read"] if unreadable else []
        parts += [f"{sum(self.uninstalled.values()):,} wait for an extra"] if self.uninstalled else []
        parts += [f"{len(self.set_aside):,} set aside"] if self.set_aside else []
        kept = sum(self.missing.values())
        parts += [f"{kept:,} kept of what is not there now"] if kept else []
        return ", ".join(parts)
