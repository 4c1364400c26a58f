"""Contract suite of evaluation tasks: they find their data, notice changes, and measure the same again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest

from mobileclip.evaluation import (
    DatasetResult,
    FeatureCache,
    Session,
    Task,
    TaskOptions,
    evaluation_tasks,
    read_results,
    write_results,
)
from mobileclip.inference.image_text_model import ImageTextModel
from tests.errors import fails

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
        AssertionError: if something of it is not so.
    """
    assert evaluation_tasks[key].name.strip()
    options = options or TaskOptions()
    with tempfile.TemporaryDirectory() as folder, fails(ValueError, folder):
        evaluation_tasks[key].find(key, folder).open(options)
    task, content = _opened(key, data, options), _opened(key, data, options).content()
    assert task.content() == content
    evaluation = _evaluated(key, task, session)
    _check_result(key, evaluation)
    clip = ImageTextModel(session.clip.model, text_towers=session.clip.text_towers)  # which knows no text yet
    other = attrs.evolve(session, clip=clip, batch_size=session.batch_size // 2 + 1)
    for one in (session, other):
        again = _evaluated(key, _opened(key, data, options), one)
        assert again.outcomes.keys == evaluation.outcomes.keys
        assert again.metrics == pytest.approx(dict(evaluation.metrics), rel=0, abs=_NEAR)
    if change is not None:
        change()
        assert _opened(key, data, options).content() != content


def _opened(key: str, data: Path | str, options: TaskOptions) -> Task:
    found = evaluation_tasks[key].find(key, str(data))
    assert found.key == key
    return found.open(options)


def _evaluated(key: str, task: Task, session: Session) -> DatasetResult:
    """Score features that have been in a file."""
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder=folder, weights_sha256="any", model="any")
        cache.write(key, "any", task.features(session))
        kept = cache.read(key, "any")
    assert kept is not None, f"the features of {key} cannot be kept in a file"
    evaluation = task.score(kept)
    assert isinstance(evaluation, DatasetResult)
    return evaluation


def _check_result(key: str, result: DatasetResult) -> None:
    outcomes = result.outcomes
    assert result.key == key
    assert result.dataset.strip()
    assert result.num_images
    assert result.num_skipped == result.report.num_skipped
    assert outcomes.keys
    assert len(outcomes.values)
    assert np.isfinite(outcomes.values).all()
    assert outcomes.groups is not None or abs(float(np.mean(outcomes.values)) - result.main_metric) < _NEAR
    with tempfile.TemporaryDirectory() as folder:
        write_results(Path(folder, "results.jsonl"), [result])
        assert read_results(Path(folder, "results.jsonl")) == {key: result}
