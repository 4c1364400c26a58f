"""Tasks whose data are the files of one folder."""

from __future__ import annotations

import attrs

from mobileclip.evaluation.datasets.content import folder_content, hash_of
from mobileclip.evaluation.encoding.features import Features
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.task import Evaluation, Task


@attrs.frozen(kw_only=True)
class FolderTask(Task):
    """A task whose data are the files of one folder.

    Args:
        key: what results call it.
        name: what tables call it.
        path: folder or address of its data.
    """

    key: str
    name: str
    path: str

    @property
    def choices(self) -> tuple[str, ...]:
        """What else the answers depend on, beside the files."""
        return ()

    def content(self) -> str | None:
        """Return a hash of the files and the choices."""
        files = folder_content(self.path)
        return None if files is None else hash_of([self.key, self.path, *self.choices, files])

    def features(self, session: Session) -> Features:
        """Return what was reached, which is not kept."""
        return Features(tensors={}, header={"evaluation": self.evaluate(session)})

    def score(self, features: Features) -> Evaluation:
        """Return what was reached."""
        evaluation: Evaluation = features.header["evaluation"]
        return evaluation
