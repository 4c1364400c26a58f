"""Contract suite of export targets: they write, measure, open and run a model, and refuse damaged files."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

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
from mobileclip.testing.comparing import copies, first_line

T = TypeVar("T")

_THREADS = 4
# Of cosines of what one file answers, in other threads, copies and processes.
_SAME = 1 - 1e-5


def check_target(model: DualEncoder, export: ExportSpec | Path | str, *, samples: Samples | None = None) -> None:
    """Check that an export passes its acceptance checks, runs in threads and copies, and is refused without trust.

    The files are called as the target says. Measured again, the export passes its gates, as its report says. Opened,
    its embeddings are the model's, to the least cosine of the precision. Threads that ask at once, a deep copy and what
    comes back from pickle get the same. `num_threads=1` gives the same, or is refused with a `ValueError`; 0 is
    refused. An export that was written on another machine is opened with trust, and without only if the target is
    vouched for. A file that has changed, or is cut off, is a `ValueError`, with trust too. What no runtime here runs,
    as its contract says, is refused as such.

    Args:
        model: both towers, whose embeddings tell pictures and captions apart.
        export: how it is written, in a registered target; or the folder of an export of it.
        samples: that it is measured on; those of the library by default.

    Raises:
        AssertionError: if something of it is not so; the message says what.

    Examples:
        >>> from mobileclip.export import ExportSpec
        >>> model, spec = mobileclip.load("icons").model, ExportSpec(output="icons", target="torch")
        >>> check_target(model, spec)
        >>> check_target(model, spec)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: torch in float32 is not exported: FileExistsError: icons already exists; ...
    """
    if isinstance(export, ExportSpec):
        name, spec = f"{export.target} in {export.precision}", export
        folder = _done(
            f"{name} is not exported", lambda: export_model(model, spec, samples=samples, show_progress=False)
        )
    else:
        folder = Path(export)
    contract = read_contract(folder)
    name, target = f"{contract.target} in {contract.precision}", targets.resolve(contract.target)
    assert contract.precision in target.precisions, f"{name} is written, and the target says {target.precisions}"
    for file in contract.towers:
        assert file.file.endswith(target.suffix), f"{file.file} does not end with {target.suffix!r}, as {name} says"
    if contract.state != "run":
        _check_not_run(name, folder)
        with tempfile.TemporaryDirectory() as place:
            _check_strangers(name, Path(shutil.copytree(folder, Path(place, "elsewhere"))), target, is_run=False)
        return
    report = _done(f"{name} is not verified", lambda: verify_export(folder, trust=True, show_progress=False))
    assert report.passed, f"{name} does not pass: {'; '.join(report.failures)}"
    assert report == read_report(folder), f"{name} is measured again, and its report is another"
    answers = _answers(_opened(name, folder))
    least = LEAST_COSINE[contract.precision]
    _check_near(f"{name} gives other embeddings than the model", answers, _answers(ImageTextModel(model)), least)
    clip = _opened(name, folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        for turn, found in enumerate(pool.map(lambda turn: _answers(clip, turn), range(4 * _THREADS))):
            _check_near(
                f"{name} gives threads that ask at once others' embeddings", found, answers.roll(-turn, 1), _SAME
            )
    for done, other in copies(clip):
        _check_near(f"{name} gives other embeddings once it was {done}", _answers(other), answers, _SAME)
    _check_num_threads(name, folder, answers)
    with tempfile.TemporaryDirectory() as place:
        _check_strangers(name, Path(shutil.copytree(folder, Path(place, "elsewhere"))), target)


def _done(otherwise: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:
        raise AssertionError(f"{otherwise}: {first_line(error)}") from error


def _opened(name: str, folder: Path) -> ImageTextModel:
    return _done(f"{name} is not opened", lambda: ImageTextModel(load_export(folder, trust=True)))


def _answers(clip: ImageTextModel, turn: int = 0) -> Tensor:
    """Return the embeddings of four pictures and four captions, each asked alone; from another one on in each turn."""
    samples, order = bundled_samples(), [(place + turn) % 4 for place in range(4)]
    images = [clip.encode_image(samples.images[place]) for place in order]
    texts = [clip.encode_text(samples.captions[place]) for place in order]
    return torch.stack([torch.stack(images), torch.stack(texts)]).flatten(2)


def _check_near(what: str, found: Tensor, expected: Tensor, least: float) -> None:
    cosine = float(torch.cosine_similarity(found, expected, dim=-1).min())
    assert cosine >= least, f"{what}: the least cosine is {cosine:.6f}, and {least:.6f} is expected"


def _check_num_threads(name: str, folder: Path, answers: Tensor) -> None:
    try:
        one = ImageTextModel(load_export(folder, trust=True, num_threads=1))
    except ValueError as error:
        assert "thread" in str(error), f"num_threads=1 is refused by {name}, and not named: {error}"  # noqa: PT017
    except Exception as error:
        raise AssertionError(
            f"num_threads=1 is refused by {name}, and not by a ValueError: {first_line(error)}"
        ) from error
    else:
        _check_near(f"{name} gives other embeddings with num_threads=1", _answers(one), answers, _SAME)
    _check_refused(f"{name} with num_threads=0", lambda: load_export(folder, trust=True, num_threads=0))


def _check_not_run(name: str, folder: Path) -> None:
    for call in (lambda: verify_export(folder, trust=True), lambda: load_export(folder, trust=True)):
        try:
            call()
        except NotRunHereError:
            continue
        except Exception as error:
            raise AssertionError(
                f"{name} was not run, and is to be refused with a NotRunHereError: {first_line(error)}"
            ) from error
        raise AssertionError(f"{name} was not run, as its contract says, and is opened")


def _check_strangers(name: str, folder: Path, target: Target, *, is_run: bool = True) -> None:
    contract = folder / "mobileclip.json"
    # Of other bytes, it is another export, which nobody here has written.
    contract.write_text(json.dumps(json.loads(contract.read_text(encoding="utf-8")), indent=3), encoding="utf-8")
    if is_run:
        _done(f"{name} is not opened with trust", lambda: load_export(folder, trust=True))
    if not target.vouched:
        _check_refused(f"a stranger's file of {name}", lambda: load_export(folder))
    read = json.loads(contract.read_text(encoding="utf-8"))
    file = folder / next(one for one in read["files"] if one.startswith(read["towers"][0]["file"]))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    _check_refused(f"a file of {name} that has changed", lambda: load_export(folder, trust=True))
    read["files"][file.relative_to(folder).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    contract.write_text(json.dumps(read), encoding="utf-8")
    _check_refused(f"a file of {name} that is cut off", lambda: load_export(folder, trust=True))


def _check_refused(what: str, call: Callable[[], object]) -> None:
    try:
        call()
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{what} is to be refused with a ValueError, and gives {first_line(error)}") from error
    raise AssertionError(f"{what} is not refused; a ValueError is to say what is wrong")
