"""Contract suite of export targets: they write, measure, open and run a model, and refuse damaged files."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mobileclip.encoders import DualEncoder
from mobileclip.export import (
    ExportSpec,
    Samples,
    bundled_samples,
    export_model,
    load_export,
    read_contract,
    read_report,
    targets,
    verify_export,
)
from mobileclip.export.targets import NotRunHereError, Target
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.testing.comparing import copies
from tests.errors import fails

_THREADS = 4
# Of cosines of what one file answers, in other threads, copies and processes.
_SAME = 1 - 1e-5


def check_target(model: DualEncoder, export: ExportSpec | Path | str, *, samples: Samples | None = None) -> None:
    """Check that an export passes its acceptance checks, runs in threads and copies, and is refused without trust.

    The files are called as the target says. Measured again, the export passes its checks, as its report says. Opened,
    its embeddings are the model's, to the least cosine of the precision. Threads that ask at once, a deep copy and what
    comes back from pickle get the same. `num_threads=1` gives the same, or is refused with a `ValueError`; 0 is
    refused. An export that was written on another machine is opened with trust, and without only if the target
    validates files. A file that has changed, or is cut off, is a `ValueError`, with trust too. What no runtime here
    runs, as its contract says, is refused as such.

    Args:
        model: both towers, whose embeddings tell pictures and captions apart.
        export: how it is written, in a registered target; or the folder of an export of it.
        samples: that it is measured on; those of the library by default.

    Raises:
        AssertionError: if something of it is not so.
    """
    folder = export
    if isinstance(export, ExportSpec):
        folder = export_model(model, export, samples=samples, show_progress=False)
    folder = Path(folder)
    contract = read_contract(folder)
    target = targets.resolve(contract.target)
    assert contract.precision in target.precisions
    for file in contract.towers:
        assert file.file.endswith(target.suffix)
    is_run = contract.state == "run"
    if is_run:
        report = verify_export(folder, trust=True, show_progress=False)
        assert report.passed, report.failures
        assert report == read_report(folder)
        _check_answers(model, folder, LEAST_COSINE[contract.precision])
    else:
        for call in (verify_export, load_export):
            with pytest.raises(NotRunHereError):
                call(folder, trust=True)
    with tempfile.TemporaryDirectory() as place:
        _check_strangers(Path(shutil.copytree(folder, Path(place, "elsewhere"))), target, is_run=is_run)


def _opened(folder: Path, **choices: int) -> ImageTextModel:
    return ImageTextModel(load_export(folder, trust=True, **choices))


def _check_answers(model: DualEncoder, folder: Path, least: float) -> None:
    clip = _opened(folder)
    answers = _answers(clip)
    _check_near("the model", answers, _answers(ImageTextModel(model)), least)
    with ThreadPoolExecutor(_THREADS) as pool:
        for turn, found in enumerate(pool.map(lambda turn: _answers(clip, turn), range(4 * _THREADS))):
            _check_near("threads that ask at once", found, answers.roll(-turn, 1), _SAME)
    for done, other in copies(clip):
        _check_near(f"what was {done}", _answers(other), answers, _SAME)
    try:
        one = _opened(folder, num_threads=1)
    except ValueError as error:
        assert "thread" in str(error)  # noqa: PT017
    else:
        _check_near("num_threads=1", _answers(one), answers, _SAME)
    with fails(ValueError):
        load_export(folder, trust=True, num_threads=0)


def _answers(clip: ImageTextModel, turn: int = 0) -> Tensor:
    """Return the embeddings of four pictures and four captions, each asked alone; from another one on in each turn."""
    samples, order = bundled_samples(), [(place + turn) % 4 for place in range(4)]
    images = [clip.encode_image(samples.images[place]) for place in order]
    texts = [clip.encode_text(samples.captions[place]) for place in order]
    return torch.stack([torch.stack(images), torch.stack(texts)]).flatten(2)


def _check_near(what: str, found: Tensor, expected: Tensor, least: float) -> None:
    cosine = float(torch.cosine_similarity(found, expected, dim=-1).min())
    assert cosine >= least, f"other embeddings of {what}: the least cosine is {cosine:.6f}, and {least:.6f} is expected"


def _check_strangers(folder: Path, target: Target, *, is_run: bool) -> None:
    contract = folder / "mobileclip.json"
    # Of other bytes, it is another export, which nobody here has written.
    contract.write_text(json.dumps(json.loads(contract.read_text(encoding="utf-8")), indent=3), encoding="utf-8")
    if is_run:
        load_export(folder, trust=True)
    if not target.validates_files:
        with fails(ValueError):
            load_export(folder)
    read = json.loads(contract.read_text(encoding="utf-8"))
    file = folder / next(one for one in read["files"] if one.startswith(read["towers"][0]["file"]))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with fails(ValueError):
        load_export(folder, trust=True)
    read["files"][file.relative_to(folder).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    contract.write_text(json.dumps(read), encoding="utf-8")
    with fails(ValueError):
        load_export(folder, trust=True)
