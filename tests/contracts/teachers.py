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
from mobileclip.testing.comparing import first_line, relative_error
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
        AssertionError: if something of it is not so; the message says what.

    Examples:
        >>> from mobileclip.reinforce.teachers import CheckpointTeacher
        >>> model = mobileclip.encoders.MCtSpec(width=16, num_heads=2, depth=0, embedding_dim=8)
        >>> model = mobileclip.encoders.DualEncoderSpec(image=mobileclip.encoders.ViTSpec(
        ...     width=16, num_heads=2, depth=1, embedding_dim=8), text=model).build()
        >>> mobileclip.encoders.save_model(model, "teacher.safetensors")
        >>> check_teacher(CheckpointTeacher(checkpoint="teacher.safetensors"))
        >>> check_teacher(0.5)
        Traceback (most recent call last):
        AssertionError: float is not an attrs class; make it one with @attrs.frozen(kw_only=True)
    """
    check_spec(spec, family=TeacherSpec)
    name = type(spec).__name__
    teacher, again = spec.build(), spec.build()
    assert isinstance(teacher, Teacher), f"what {name} builds is no Teacher: it lacks a property or a method of one"
    check_identity(name, teacher.name, teacher.weights_sha256)
    assert isinstance(teacher.image, ImageInput), f"the image contract of {name} is {teacher.image!r}, no ImageInput"
    assert teacher.dim > 0, f"the dim of {name} is {teacher.dim}"
    is_scale = math.isfinite(teacher.logit_scale) and teacher.logit_scale > 0
    assert is_scale, f"the logit scale of {name} is {teacher.logit_scale}; give what cosines are multiplied with"
    for fact in ("name", "weights_sha256", "dim", "logit_scale", "image"):
        one, other = getattr(teacher, fact), getattr(again, fact)
        assert one == other, f"the {fact} of {name} is {other!r} when it is built again, not {one!r}"
    size = teacher.image.size
    images = torch.randint(0, 256, (5, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    state = torch.get_rng_state()
    _check_embeddings(f"images of {name}", teacher.dim, images, teacher.encode_images, again.encode_images)
    _check_embeddings(f"texts of {name}", teacher.dim, _TEXTS, teacher.encode_texts, again.encode_texts)
    assert torch.equal(torch.get_rng_state(), state), f"{name} draws from the random numbers of the process"


def check_identity(kind: str, name: object, weights_sha256: str) -> None:
    """Check that a model that wrote something can be told by what is stored of it."""
    assert isinstance(name, str), f"the name of {kind} is {name!r}, not a text"
    assert name.strip(), f"the name of {kind} is empty; data say by it who made them"
    is_hash = re.fullmatch("[0-9a-f]{64}", weights_sha256) is not None
    assert is_hash, f"the hash of the weights of {kind} is {weights_sha256!r}; `weights_sha256` makes one"


def _check_embeddings(
    what: str, dim: int, given: Any, encode: Callable[[Any], Tensor], again: Callable[[Any], Tensor]
) -> None:
    def ask(call: Callable[[Any], Tensor], rows: Any) -> Tensor:
        try:
            return call(rows)
        except Exception as error:
            raise AssertionError(f"{what} are not embedded: {first_line(error)}") from error

    kept = given.clone() if isinstance(given, Tensor) else given
    found = ask(encode, given)
    is_kept = not isinstance(kept, Tensor) or torch.equal(kept, given)
    assert is_kept, f"the {what} are changed where they are embedded"
    shape = (len(given), dim)
    assert tuple(found.shape) == shape, f"embeddings of {what} have the shape {tuple(found.shape)}, not {shape}"
    assert found.device.type == "cpu", f"embeddings of {what} are on {found.device}, not on the CPU"
    assert not found.requires_grad, f"embeddings of {what} have gradients; compute them in torch.inference_mode()"
    assert found.isfinite().all(), f"embeddings of {what} are not finite numbers"
    for row in found[1:]:
        assert relative_error(row, found[0]) > 0, f"embeddings of {what} are one and the same"
    none = ask(encode, given[:0])
    assert tuple(none.shape) == (0, dim), f"of no {what}, the embeddings have the shape {tuple(none.shape)}"
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda index: ask(encode, given[index : index + 1]), range(len(given))))
    for how, other in {
        "asked one by one, by several threads": torch.cat(alone),
        "by the same teacher, built again": ask(again, given),
    }.items():
        error = relative_error(other, found)
        assert error < _NEAR, f"embeddings of {what} are others {how}: the relative error is {error:.1e}"
