"""Contract suite of teachers: a stable identity, and the same embedding of an image or text every time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from mobileclip.inputs import ImageInput
from mobileclip.reinforce.teachers import Teacher, TeacherSpec
from mobileclip.testing.comparing import relative_error
from mobileclip.testing.specs import check_spec

_TEXTS = ("a photo of a dog", "two red bicycles", "", "a " * 400 + "cat")
# Of embeddings that are computed in another batch, in bfloat16 too.
_NEAR = 0.03


def check_teacher(spec: TeacherSpec) -> None:
    """Check a teacher's identity, and that its embeddings are finite and do not depend on the batch, build or thread.

    Its spec is a value (`check_spec`). What it builds has a name, the hash of its weights, a dim, a logit scale and an
    image contract, the same when it is built again. Images (uint8) and texts, empty and long ones too, become finite
    embeddings of its dim on the CPU, without gradients; none become none. An embedding differs from another's, and does
    not depend on what comes with it, or on which time the teacher is built; several threads may ask. Random numbers of
    the process, and what is given, are left as they are.

    Args:
        spec: of a registered class.

    Raises:
        AssertionError: if something of it is not so.
    """
    check_spec(spec, family=TeacherSpec)
    teacher, again = spec.build(), spec.build()
    assert isinstance(teacher, Teacher)
    assert isinstance(teacher.image, ImageInput)
    check_identity(teacher, again, "dim", "logit_scale", "image")
    assert teacher.dim > 0
    assert math.isfinite(teacher.logit_scale)
    assert teacher.logit_scale > 0
    size = teacher.image.size
    images = torch.randint(0, 256, (5, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    state, kept = torch.get_rng_state(), images.clone()
    _check_embeddings(teacher.dim, images, teacher.encode_images, again.encode_images)
    assert torch.equal(images, kept), "images are changed where they are embedded"
    _check_embeddings(teacher.dim, _TEXTS, teacher.encode_texts, again.encode_texts)
    assert torch.equal(torch.get_rng_state(), state), "it draws from the random numbers of the process"


def check_identity(one: Any, again: Any, *facts: str) -> None:
    """Check that a model that wrote something can be told by what is stored of it."""
    assert isinstance(one.name, str)
    assert one.name.strip()
    assert re.fullmatch("[0-9a-f]{64}", one.weights_sha256)
    for fact in ("name", "weights_sha256", *facts):
        assert getattr(one, fact) == getattr(again, fact), fact


def _check_embeddings(dim: int, given: Any, encode: Callable[[Any], Tensor], again: Callable[[Any], Tensor]) -> None:
    found = encode(given)
    assert tuple(found.shape) == (len(given), dim)
    assert found.device.type == "cpu"
    assert not found.requires_grad
    assert found.isfinite().all()
    for row in found[1:]:
        assert relative_error(row, found[0]) > 0
    assert tuple(encode(given[:0]).shape) == (0, dim)
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda index: encode(given[index : index + 1]), range(len(given))))
    assert relative_error(torch.cat(alone), found) < _NEAR
    assert relative_error(again(given), found) < _NEAR
