"""What a task is: something that a session evaluates its model on; and the tasks that are known by a key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import attrs

from mobileclip.evaluation.features import Features, Session
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.spec import TaskOptions
from mobileclip.registry import Registry


class Task(ABC):
    """An evaluation task with its data opened.

    A model's features of them are made once and kept; every number of a report is made of these anew.
    """

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompts that names are filled into, which tell a result from that of others; none by default."""
        return ()

    @abstractmethod
    def content(self) -> str | None:
        """Return a hash of the data that features are made of; None if unknown: features are then not kept.

        What scoring alone needs is no part of it.

        Raises:
            OSError: if the data cannot be read, or a store cannot be reached.
        """

    @abstractmethod
    def features(self, session: Session) -> Features:
        """Return the model's features of the data, by `session.kept` with `content`.

        Raises:
            ValueError: if nothing can be evaluated; the message says why.
            OSError: if the data cannot be read, or a store cannot be reached.
        """

    @abstractmethod
    def score(self, features: Features) -> DatasetResult:
        """Return the metrics of features, without opening any picture or model.

        Raises:
            ValueError: if they cannot be scored; the message says why.
        """

    def evaluate(self, session: Session) -> DatasetResult:
        """Return the score of the session's model: its `features`, evaluated by `score`.

        Raises:
            ValueError, OSError: see `features` and `score`.
        """
        return self.score(self.features(session))


@attrs.frozen(kw_only=True)
class FoundTask:
    """A task whose data were found and not opened yet.

    Args:
        key: what results call it.
        name: what tables call it.
        path: folder or URL of its data.
        opener: see `TaskEntry`.
    """

    key: str
    name: str
    path: str
    opener: Opener

    def open(self, options: TaskOptions) -> Task:
        """Return the task, having read what is asked; pictures are read when they are needed.

        Raises:
            ValueError: if the data are missing or malformed; the message says what, and where.
            OSError: if a store cannot be reached.
        """
        return self.opener(self, options)


Opener = Callable[[FoundTask, TaskOptions], Task]


@attrs.frozen(kw_only=True)
class TaskEntry:
    """A task that is known by a key.

    Args:
        name: what tables call it.
        place: from the key, and the folder or URL that holds data sets (None for the hub), to the folder or URL
            of its data. Raises a ValueError that says what was looked for where there is nothing.
        opener: from what was found, and the options, to the task.
    """

    name: str
    place: Callable[[str, str | None], str]
    opener: Opener

    def find(self, key: str, data: str | None) -> FoundTask:
        """Return the task with the place of its data.

        Args:
            key: that it is known by.
            data: folder or URL that holds data sets; None for the hub.

        Raises:
            ValueError: if its data are not where they should be.
        """
        return FoundTask(key=key, name=self.name, path=self.place(key, data), opener=self.opener)


evaluation_tasks: Registry[TaskEntry] = Registry("evaluation_task")
"""Tasks by key, such as `vtab/pets`; others come through entry points in the group `mobileclip.evaluation_task`."""
