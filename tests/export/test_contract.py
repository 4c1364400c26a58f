"""Targets keep the contract of targets, in a precision each, and each way to break it is told."""

from __future__ import annotations

import re
import time
from typing import ClassVar

import attrs
import pytest
import torch

from mobileclip.export import ExportSpec, export_model, running, targets
from mobileclip.export.targets import TorchTarget
from tests.contracts.targets import check_target
from tests.export.models import SHALLOW, few_samples, seeing


@attrs.frozen
class OddTarget(TorchTarget):
    """Programs of `torch.export`, by a target that breaks the contract in one way.

    Each file is loaded once for all of them.
    """

    odd: str = ""
    local: object = None
    loaded: ClassVar = {}

    def open(self, path, tower, *, device="cpu", num_threads=None):
        if self.odd == "unlimited" and num_threads == 1:
            raise KeyError("num_threads")
        if self.odd == "idle" and num_threads == 0:
            num_threads = None
        try:
            content = path.read_bytes(), num_threads
            if content not in self.loaded:
                self.loaded[content] = super().open(path, tower, device=device, num_threads=num_threads)
            run = self.loaded[content]
        except ValueError as error:
            if num_threads == 0 or self.odd not in ("crashing", "mending"):
                raise
            if self.odd == "crashing":
                raise RuntimeError("core dumped") from error
            return torch.ones_like
        given = []

        def odd(inputs):
            if self.odd == "racing":
                given.append(inputs)
                time.sleep(0.01)
                return run(given[-1])
            outputs = run(inputs)
            if self.odd == "other" or (self.odd == "alone" and num_threads == 1):
                return tuple(-one for one in outputs)
            return tuple(one + 1e-5 * torch.rand_like(one) for one in outputs) if self.odd == "restless" else outputs

        return odd


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = seeing(SHALLOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "_values", targets._values | {"odd": OddTarget()})
        spec = ExportSpec(output=tmp_path_factory.mktemp("odd") / "out", target="odd")
        return model, export_model(model, spec, samples=few_samples(), show_progress=False)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (OddTarget(precisions=("int8",)), "odd in float32 is written, and the target says ('int8',)"),
        (OddTarget(suffix=".odd"), "image.pt2 does not end with '.odd', as odd in float32 says"),
        (OddTarget(odd="other"), "odd in float32 does not pass: image cosine, minimum is -1"),
        (OddTarget(odd="restless"), "odd in float32 is measured again, and its report is another"),
        (OddTarget(odd="racing"), "odd in float32 gives threads that ask at once others' embeddings"),
        (OddTarget(local=lambda: 0), "ImageTextModel cannot be pickled"),
        (OddTarget(odd="unlimited"), "num_threads=1 is refused by odd in float32, and not by a ValueError: KeyError"),
        (OddTarget(odd="alone"), "odd in float32 gives other embeddings with num_threads=1"),
        (OddTarget(odd="idle"), "odd in float32 with num_threads=0 is not refused"),
        (OddTarget(odd="believed"), "a stranger's file of odd in float32 is not refused"),
        (OddTarget(odd="mending"), "a file of odd in float32 that is cut off is not refused"),
        (OddTarget(odd="crashing"), "a file of odd in float32 that is cut off is to be refused with a ValueError"),
    ],
    ids=lambda value: value.odd if isinstance(value, OddTarget) else "",
)
def test_each_way_to_break_it_is_told(odd, said, exported, monkeypatch):
    monkeypatch.setattr(targets, "_values", targets._values | {"odd": odd})
    if odd.odd == "believed":
        monkeypatch.setattr(running, "is_believed", lambda _: True)
    with pytest.raises(AssertionError, match=re.escape(said)):
        check_target(*exported)
