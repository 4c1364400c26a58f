"""The forms that a tower can compute in: how it is laid out, in which precision, compiled or not, how many at once."""

from __future__ import annotations

import copy
from typing import Any, Literal, cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.encoders import ImageEncoderSpec, TextEncoder, TextEncoderSpec
from mobileclip.encoders.checks import check_images, check_tokens
from mobileclip.encoders.end_token import cut_behind_the_end, encode_cut

Precision = Literal["fp32", "bf16"]
# That one process may hold of one kind of tower; torch's own limit is against a model that never stops compiling.
_MOST_PROGRAMS = 256
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@attrs.frozen(kw_only=True)
class Form:
    """How a folded tower computes.

    Args:
        precision: of the weights and the features; embeddings come out in float32.
        compiled: whether inductor compiles the tower, its weights frozen into the program.
        most: images or texts computed at once; a larger batch goes in parts. What a few images need between two layers
            stays in a processor's cache.
    """

    precision: Precision
    compiled: bool
    most: int

    def __str__(self) -> str:
        """Return what a report calls it."""
        return f"{'compiled' if self.compiled else 'eager'} {self.precision}, {self.most} at once"


class OptimizedTower(nn.Module):
    """A folded tower in one form, for batches of any size.

    Compiled programs are made for one size of batch: what is left over at the end of a batch is computed eagerly, so
    that no call waits for a compiler. No gradients: embeddings are plain tensors, in float32.

    Shape:
        what the tower takes, to `(batch, embedding_dim)`.

    Args:
        tower: folded, in float32, on the CPU; it is copied.
        form: how to compute.

    Raises:
        ValueError: if the inputs are not what the tower takes.
    """

    def __init__(self, tower: nn.Module, *, form: Form) -> None:
        super().__init__()
        self.form = form
        self.spec = cast("ImageEncoderSpec | TextEncoderSpec", tower.spec)
        laid_out = copy.deepcopy(tower).to(_DTYPES[form.precision])
        if isinstance(laid_out, TextEncoder):
            self.tower: nn.Module = _EndToken(laid_out)
        else:
            self.tower = laid_out.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval()
        self._program: Any = None

    def compile_for(self, inputs: Tensor) -> None:
        """Compile the tower for batches of `form.most`, if the form is a compiled one.

        Args:
            inputs: at least `form.most` images or texts.

        Raises:
            Exception: whatever the compiler raises, where there is none or it cannot compile the tower.
        """
        if not self.form.compiled:
            return
        import torch._dynamo.config
        import torch._inductor.config as inductor

        # Whether weights are frozen is asked while the graph is traced, so not an option of the one compilation.
        limit = torch._dynamo.config.patch(recompile_limit=_MOST_PROGRAMS)  # noqa: SLF001
        with inductor.patch(freezing=True), limit, torch.inference_mode(mode=False), torch.no_grad():
            program = torch.compile(self.tower, fullgraph=True, dynamic=False if self._has_one_size else None)
            example = self._prepared(inputs)[: self.form.most].clone()
            if not self._has_one_size:
                torch._dynamo.mark_dynamic(example, 1, min=2, max=inputs.shape[1])  # noqa: SLF001
            program(example)
        self._program = program

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings, not normalised."""
        # Outside inference mode, whichever mode the caller is in: a program is compiled for one kind of tensors.
        with torch.inference_mode(mode=False), torch.no_grad():
            prepared = self._prepared(inputs)
            parts = [self._encode(part) for part in torch.split(prepared, self.form.most)]
            return torch.cat(parts).float()

    @property
    def _has_one_size(self) -> bool:
        return not (isinstance(self.tower, _EndToken) and self.tower.tower.spec.causal)

    def _prepared(self, inputs: Tensor) -> Tensor:
        """Return the checked inputs as a copy, which no inference mode has made."""
        if isinstance(self.tower, _EndToken):
            check_tokens(inputs, self.tower.tower.spec.input)
            return cut_behind_the_end(self.tower.tower, inputs).clone()
        assert isinstance(self.spec, ImageEncoderSpec)
        check_images(inputs, self.spec.input)
        return inputs.to(_DTYPES[self.form.precision], memory_format=torch.channels_last, copy=True)

    def _encode(self, part: Tensor) -> Tensor:
        whole = self._program is not None and len(part) == self.form.most
        if not whole:
            rest: Tensor = self.tower(part)
            return rest
        # A program may rely on where its input starts in memory: at the start of what was allocated.
        embeddings: Tensor = self._program(part.clone() if part.storage_offset() else part)
        return embeddings


class _EndToken(nn.Module):
    """A text tower up to its end tokens, as a module of its own, which can be compiled.

    Shape:
        ids `(batch, tokens)` to `(batch, embedding_dim)`.

    Args:
        tower: in evaluation mode.
    """

    def __init__(self, tower: TextEncoder) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of texts that end within the tokens."""
        return encode_cut(self.tower, tokens)
