"""Interface of the evaluation tasks, and the registry of the tasks by key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import attrs

from mobileclip.evaluation.features import Features, Session
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.spec import TaskOptions
from mobileclip.registry import Registry


class Task(ABC):
    """An evaluation task whose data has been opened.

    A session computes and caches the features of the data once per model; `score` then computes the metrics from the
    features.
    """

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompt templates for the class names, empty by default; each result records a hash of the templates."""
        return ()

    @abstractmethod
    def content(self) -> str | None:
        """Return a hash of the data that the features depend on; None to disable caching of the features.

        The hash excludes data that only `score` needs.

        Raises:
            OSError: if the data cannot be read, or a store cannot be reached.
        """

    @abstractmethod
    def features(self, session: Session) -> Features:
        """Return the features of the data, from `session.cached_features` with `content` as the cache key.

        Raises:
            ValueError: if no sample is usable; the message gives the reasons.
            OSError: if the data cannot be read, or a store cannot be reached.
        """

    @abstractmethod
    def score(self, features: Features) -> DatasetResult:
        """Return the metrics, computed from the features alone (no images, no model).

        Raises:
            ValueError: if the features cannot be scored; the message gives the reason.
        """

    def evaluate(self, session: Session) -> DatasetResult:
        """Compute the features with the session's model, and return the metrics.

        Raises:
            ValueError, OSError: if the data cannot be read or scored; see `features` and `score`.
        """
        return self.score(self.features(session))


@attrs.frozen(kw_only=True)
class FoundTask:
    """A task whose data has been found but not opened.

    Args:
        key: key of the task in results.
        name: name of the task in tables.
        path: folder or URL of the data.
        opener: function that opens the task; see `TaskEntry`.
    """

    key: str
    name: str
    path: str
    opener: Opener

    def open(self, options: TaskOptions) -> Task:
        """Open the task and read its questions; the images are read later.

        Raises:
            ValueError: if the data are missing or malformed; the message names the file and the problem.
            OSError: if a store cannot be reached.
        """
        return self.opener(self, options)


Opener = Callable[[FoundTask, TaskOptions], Task]


@attrs.frozen(kw_only=True)
class TaskEntry:
    """A task registered by a key.

    Args:
        name: name of the task in tables.
        place: function that returns the folder or URL of the task's data from the `key` and `data` of `find`. If the
            data are missing, the function raises a ValueError that lists the locations searched.
        opener: function that opens a `FoundTask` with the given options.
    """

    name: str
    place: Callable[[str, str | None], str]
    opener: Opener

    def find(self, key: str, data: str | None) -> FoundTask:
        """Return the task with the location of its data.

        Args:
            key: key of the task.
            data: folder or URL that holds data sets; None for the Hugging Face hub.

        Raises:
            ValueError: if the data of the task are missing.
        """
        return FoundTask(key=key, name=self.name, path=self.place(key, data), opener=self.opener)


evaluation_tasks: Registry[TaskEntry] = Registry("evaluation_task")
"""Tasks by key, such as `vtab/pets`; plugins add tasks as entry points in the group `mobileclip.evaluation_task`."""
