"""Contract suite of evaluation tasks: they find their data, notice changes, and measure the same again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np

from mobileclip.evaluation import (
    DatasetResult,
    FeatureCache,
    Features,
    Session,
    Task,
    TaskOptions,
    evaluation_tasks,
    read_results,
    write_results,
)
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.testing.comparing import first_line

# Embeddings that are computed in another batch differ in their last digits.
_NEAR = 1e-3


def check_task(
    key: str,
    data: Path | str,
    session: Session,
    *,
    change: Callable[[], object] | None = None,
    options: TaskOptions | None = None,
) -> None:
    """Check that a task is found by its key, notices changed data, and gives results that can be kept and compared.

    It has a name, finds its data, and refuses a folder without them, with a `ValueError` that names the folder. What is
    asked has a `content`, the same when it is opened again, and another when the data have changed. Its features can be
    kept in a file, and are scored as they come back from there. What a model reaches has the key, the name and the
    numbers of images that were read and left out. The outcomes are finite, and their mean is the main metric, unless
    the worst group counts. Asked again, or in batches of another size, the model reaches the same. Results come back
    from a file as they were.

    Args:
        key: that it is registered by, in `evaluation_tasks`.
        data: folder or URL of few data, as `mobileclip eval` gets it with `--data`.
        session: of a model.
        change: changes something of the data.
        options: how the data are opened.

    Raises:
        AssertionError: if something of it is not so; the message says what.

    Examples:
        >>> from mobileclip.evaluation import Session, candidate_of
        >>> session = Session.of(candidate_of(mobileclip.load("icons").model, name="icons"), batch_size=8)
        >>> check_task("neighbors", "pictures", session)
        Traceback (most recent call last):
        AssertionError: there is no task 'neighbors'; register it in mobileclip.evaluation.evaluation_tasks
    """
    assert key in evaluation_tasks, f"there is no task {key!r}; register it in mobileclip.evaluation.evaluation_tasks"
    assert evaluation_tasks[key].name.strip(), f"the task {key!r} has no name; tables call it by that"
    options = options or TaskOptions()
    _check_empty(key, options)
    task, content = _opened(key, data, options), _opened(key, data, options).content()
    assert task.content() == content, f"the content of {key} is another when it is opened again; is a hash of its data"
    evaluation = _evaluated(key, task, session)
    _check_result(key, evaluation)
    clip = ImageTextModel(session.clip.model, text_towers=session.clip.text_towers)  # which knows no text yet
    other = attrs.evolve(session, clip=clip, batch_size=session.batch_size // 2 + 1)
    for how, one in {"again": session, "in batches of another size": other}.items():
        again = _evaluated(key, _opened(key, data, options), one)
        is_same = again.outcomes.keys == evaluation.outcomes.keys
        assert is_same, f"{key} asks about other images, or in another order, when it is asked {how}"
        found, expected = again, evaluation
        is_near = found.metrics.keys() == expected.metrics.keys() and all(
            abs(found.metrics[name] - value) <= _NEAR for name, value in expected.metrics.items()
        )
        assert is_near, f"a model reaches {dict(found.metrics)} on {key} {how}, not {dict(expected.metrics)}"
    if change is not None:
        change()
        assert _opened(key, data, options).content() != content, (
            f"the data of {key} have changed, and its content has not"
        )


def _check_empty(key: str, options: TaskOptions) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            evaluation_tasks[key].find(key, folder).open(options)
        except ValueError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(
                f"{key} is to refuse a folder without data by a ValueError: {first_line(error)}"
            ) from error
        else:
            raise AssertionError(f"{key} takes a folder without data")
        assert folder in said, f"{key} refuses a folder without data, and does not name it: {said}"


def _opened(key: str, data: Path | str, options: TaskOptions) -> Task:
    found = evaluation_tasks[key].find(key, str(data))
    assert found.key == key, f"the task {key!r} is called {found.key!r} where it is found"
    try:
        return found.open(options)
    except Exception as error:
        raise AssertionError(f"{key} cannot be opened in {data}: {first_line(error)}") from error


def _evaluated(key: str, task: Task, session: Session) -> DatasetResult:
    try:
        evaluation = task.score(_read_back(key, task.features(session)))
    except Exception as error:
        raise AssertionError(f"no model can be evaluated on {key}: {first_line(error)}") from error
    assert isinstance(evaluation, DatasetResult), f"{key} gives {type(evaluation).__name__}, not a DatasetResult"
    return evaluation


def _read_back(key: str, features: Features) -> Features:
    """Return what is left of features that have been in a file."""
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder=folder, weights_sha256="any", model="any")
        cache.write(key, "any", features)
        kept = cache.read(key, "any")
    assert kept is not None, f"the features of {key} cannot be kept in a file"
    return kept


def _check_result(key: str, evaluation: DatasetResult) -> None:
    result, outcomes = evaluation, evaluation.outcomes
    assert result.key == key, f"the result of {key} has the key {result.key!r}"
    assert result.dataset.strip(), f"the result of {key} has no name"
    assert result.num_images, f"the result of {key} is over {result.num_images} images"
    skipped = evaluation.report.num_skipped
    assert result.num_skipped == skipped, (
        f"the result of {key} says {result.num_skipped} left out, its report {skipped}"
    )
    assert outcomes.keys, f"the outcomes of {key} do not say what was asked"
    assert len(outcomes.values), f"{key} has no outcomes"
    assert np.isfinite(outcomes.values).all(), f"the outcomes of {key} are not finite"
    mean = float(np.mean(outcomes.values))
    is_mean = outcomes.groups is not None or abs(mean - result.main_metric) < _NEAR
    assert is_mean, f"the mean of the outcomes of {key} is {mean:.4f}, and its main metric {result.main_metric:.4f}"
    with tempfile.TemporaryDirectory() as folder:
        write_results(Path(folder, "results.jsonl"), [result])
        kept = read_results(Path(folder, "results.jsonl"))
    assert kept == {key: result}, f"the result of {key} comes back from a file as {kept}"
