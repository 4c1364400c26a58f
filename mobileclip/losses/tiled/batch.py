"""What a loss is given: embeddings checked against each other, and against those of the other processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from mobileclip.losses.formulas import check_pair, compute_dtype
from mobileclip.losses.tiled.tiles import Similarity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mobileclip.losses.tiled.processes import Processes

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@attrs.frozen(eq=False)
class EmbeddingBatch:
    """One process's embeddings, pairs row by row, and what makes logits of them.

    Args:
        image: (B, D), the student's images.
        text: (B, D), the student's texts.
        syn_text: (B, D), the student's synthetic captions.
        logit_scale: the student's inverse temperature.
        logit_bias: what is added to the student's logits; None for the softmax losses.
        teacher_image: (B, sum of teacher dims), the teachers' images.
        teacher_text: (B, sum of teacher dims), the teachers' texts.
        teacher_syn_text: (B, sum of teacher dims), the teachers' synthetic captions.
        teacher_dims: the teachers' dims; none where the loss does without teachers.
        teacher_logit_scales: the teachers' inverse temperatures.
        teacher_biases: what is added to the teachers' logits; None for one that was trained with a softmax.
    """

    image: Tensor
    text: Tensor
    syn_text: Tensor | None
    logit_scale: Tensor
    logit_bias: Tensor | None
    teacher_image: Tensor | None
    teacher_text: Tensor | None
    teacher_syn_text: Tensor | None
    teacher_dims: Sequence[int]
    teacher_logit_scales: Sequence[float]
    teacher_biases: Sequence[float | None]

    def check(self, processes: Processes) -> None:
        """Raise, on every process, unless the embeddings of all processes fit together.

        Raises:
            ValueError: if batches, dims or dtypes disagree, here or between the processes.
        """
        error: ValueError | None = None
        try:
            self._check_pairs()
        except ValueError as found:
            error = found
        facts = {
            "the number of pairs": self.image.shape[0] if self.image.ndim else 0,
            "the embeddings' dim": self.image.shape[-1] if self.image.ndim else 0,
            "the number of caption sets": 1 + (self.syn_text is not None),
            "the dtype of the text embeddings": _dtype_code(self.text),
            "the dtype of the synthetic captions' embeddings": _dtype_code(self.syn_text),
            "the dtype of the teachers' text embeddings": _dtype_code(self.teacher_text),
            "the dtype of the teachers' synthetic captions": _dtype_code(self.teacher_syn_text),
        }
        processes.agree(facts, error, self.image.device)

    def captions(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return the sets of captions: the student's embeddings, and the teachers' where they are used."""
        sets = [(self.text, self.teacher_text)]
        if self.syn_text is not None:
            sets.append((self.syn_text, self.teacher_syn_text))
        return [(text, teacher if self.teacher_dims else None) for text, teacher in sets]

    def student(self, text: Tensor, processes: Processes) -> Similarity:
        """Return the student's similarity of this process's images with the texts of all processes."""
        dtype = compute_dtype(self.image)
        return Similarity(self.image, processes.gather(text), self.logit_scale.to(dtype).reshape(()), dtype=dtype)

    def teachers(self, text: Tensor | None, processes: Processes) -> list[Similarity]:
        """Return the teachers' similarities of this process's images with the texts of all processes.

        Their embeddings are brought to unit length: they are stored rounded, and a scale of 100 makes that count.
        """
        if text is None:
            return []
        assert self.teacher_image is not None, "checked before"
        dtype = compute_dtype(self.image)
        images = torch.split(self.teacher_image, list(self.teacher_dims), dim=1)
        texts = torch.split(processes.gather(text), list(self.teacher_dims), dim=1)
        return [
            Similarity(image_k, text_k, scale, dtype=dtype, normalize=True)
            for image_k, text_k, scale in zip(images, texts, self.teacher_logit_scales, strict=True)
        ]

    def _check_pairs(self) -> None:
        if self.logit_scale.numel() != 1:
            raise ValueError(f"logit_scale must be one number, but its shape is {tuple(self.logit_scale.shape)}")
        if not self.teacher_dims:
            check_pair(self.image, self.text, ("image", "text"))
            if self.syn_text is not None:
                check_pair(self.image, self.syn_text, ("image", "syn_text"))
            return
        if (self.syn_text is None) != (self.teacher_syn_text is None):
            given, missing = ("syn_text", "teacher_syn_text")[:: 1 if self.teacher_syn_text is None else -1]
            raise ValueError(f"{given} was given without {missing}; synthetic captions need both")
        if self.teacher_image is None or self.teacher_text is None:
            name = "teacher_image" if self.teacher_image is None else "teacher_text"
            raise ValueError(f"{name} is missing; distillation needs the teachers' embeddings, or distill_weight=0")
        self._check_teachers(self.text, self.teacher_image, self.teacher_text, prefix="")
        if self.syn_text is not None and self.teacher_syn_text is not None:
            self._check_teachers(self.syn_text, self.teacher_image, self.teacher_syn_text, prefix="syn_")

    def _check_teachers(self, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, *, prefix: str) -> None:
        check_pair(self.image, text, ("image", f"{prefix}text"))
        check_pair(teacher_image, teacher_text, ("teacher_image", f"teacher_{prefix}text"))
        if self.image.shape[0] != teacher_image.shape[0]:
            raise ValueError(
                f"image has {self.image.shape[0]} rows and teacher_image has {teacher_image.shape[0]}; the teachers "
                "embed the same images as the student"
            )
        if teacher_image.shape[1] != sum(self.teacher_dims):
            dims = tuple(self.teacher_dims)
            raise ValueError(
                f"teacher embeddings have dim {teacher_image.shape[1]}, but teacher_dims {dims} sum to {sum(dims)}; "
                "concatenate the embeddings of all teachers, in that order"
            )


def _dtype_code(embedding: Tensor | None) -> int:
    if embedding is None:
        return -1
    return _DTYPES.index(embedding.dtype) if embedding.dtype in _DTYPES else len(_DTYPES)
