"""Computes a loss and its gradients tile by tile, without a matrix of all pairs, over any number of processes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from mobileclip.losses.specs import EmbeddingBatch, compute_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping


class TermSum:
    """The value and optional gradients of one loss term, summed over tiles and caption sets.

    Args:
        image: the student's image embeddings, (B, D).
        dtype: dtype of the computation.
        gradients: whether to compute gradients.
        bias: whether the logits have a bias.
    """

    def __init__(self, image: Tensor, *, dtype: torch.dtype, gradients: bool, bias: bool) -> None:
        self.value = image.new_zeros((), dtype=dtype)
        self.image = torch.zeros_like(image, dtype=dtype) if gradients else None
        self.bias = [self.value.clone()] if bias else []
        self.texts: list[Tensor] = []

    def begin(self, student: Similarity) -> None:
        """Start the next caption set."""
        self.student = student
        if self.image is not None:
            self.texts.append(torch.zeros_like(student.text, dtype=student.dtype))

    def add(self, tile: Tile, by_logits: Tensor) -> None:
        """If gradients are enabled, add the gradients of a tile, given the gradient `by_logits` of its logits."""
        if self.image is None:
            return
        self.image[tile.rows].addmm_(by_logits, self.student.texts(tile.columns))
        self.texts[-1][tile.columns].addmm_(by_logits.mT, self.student.images(tile.rows))
        if self.bias:
            self.bias[0] += by_logits.sum()

    def end(self, processes: Processes) -> None:
        """Finish the caption set: sum the text gradients over processes, and keep the rows of this process."""
        if self.texts:
            self.texts[-1] = processes.scatter_sum(self.texts[-1])

    def finish(self, divisor: float, processes: Processes) -> list[Tensor]:
        """Return the value and the gradients (images, each caption set, scale and bias), divided by `divisor`.

        The gradients of scale and bias are one vector, already averaged over the processes, because each process has
        copies of scale and bias.
        """
        value = self.value.div_(divisor)
        if self.image is None:
            return [value]
        by_scale = (self.image * self.student.image).sum()
        shared = processes.mean(torch.stack([by_scale, *self.bias]).div_(divisor))
        image = self.image.mul_(self.student.image_factor).div_(divisor)
        return [value, image, *(text.div_(divisor) for text in self.texts), shared]


class CaptionSet:
    """The student's and teachers' similarities for one caption set, computed tile by tile.

    Args:
        batch: this process's embeddings.
        text: the student's text embeddings of the caption set, (B, D).
        teacher_text: the teachers' text embeddings, (B, sum of teacher dims); None without teachers.
        release: whether a sigmoid loss distils with the published code's formula; see `ReinforcedLossSpec`.
        processes: processes that share the batch.
    """

    def __init__(
        self, batch: EmbeddingBatch, text: Tensor, teacher_text: Tensor | None, *, release: bool, processes: Processes
    ) -> None:
        image, dtype = batch.image, compute_dtype(batch.image)
        scale = batch.logit_scale.to(image.device, dtype).reshape(())
        self.student = Similarity(image, processes.gather(text), scale, dtype=dtype)
        similarities = [self.student]
        if batch.teacher_image is not None and teacher_text is not None:
            embeddings = (batch.teacher_image, processes.gather(teacher_text))
            parts = (torch.split(one, list(batch.teacher_dims), dim=1) for one in embeddings)
            for image_k, text_k, scale_k in zip(*parts, batch.teacher_logit_scales, strict=True):
                similarities.append(Similarity(image_k, text_k, scale_k, dtype=dtype, normalize=True))
        self.tiling = Tiling(similarities, offset=processes.rank * len(image))
        self.bias, self.release = batch.logit_bias, release
        self.teachers = list(enumerate(batch.teacher_biases, 1))
        softmaxes = [index for index, bias in ((0, self.bias), *self.teachers) if bias is None]
        self.normalizers = log_normalizers(self.tiling, softmaxes, processes)
        for index, _ in self.teachers if self.bias is None else ():
            for normalizer in self.normalizers[index]:  # so that the teachers' softmaxes sum to their mean
                normalizer.add_(math.log(len(self.teachers)))
        # Buffers, two each: for the student, for one teacher at a time, and for the means over the teachers.
        self.memory = [self.tiling.scratch() for _ in range(6 if self.teachers else 2)]

    def add_to(self, contrastive: TermSum | None, distillation: TermSum | None) -> None:
        """Add the enabled terms to the sums, times the batch size, and for softmax losses also times two."""
        for tile in self.tiling:
            if self.bias is None:
                self._add_softmaxes(tile, contrastive, distillation)
            else:
                self._add_sigmoids(tile, self.bias, contrastive, distillation)

    def _add_softmaxes(self, tile: Tile, contrastive: TermSum | None, distillation: TermSum | None) -> None:
        over_texts, over_images = self._log_softmaxes(tile, 0, self.memory[:2])
        if contrastive is not None:
            contrastive.value -= tile.diagonal(over_texts).sum() + tile.diagonal(over_images).sum()
        if distillation is not None:
            (first, _), *others = self.teachers
            targets = [found.exp_() for found in self._log_softmaxes(tile, first, self.memory[4:])]
            for index, _ in others:
                for target, found in zip(targets, self._log_softmaxes(tile, index, self.memory[2:4]), strict=True):
                    target.add_(found.exp_())
            for target, own in zip(targets, (over_texts, over_images), strict=True):
                distillation.value += self._divergence(tile, target, own)
        if not any(one is not None and one.image is not None for one in (contrastive, distillation)):
            return
        probabilities = over_texts.exp_().add_(over_images.exp_())
        if distillation is not None:
            distillation.add(tile, torch.sub(probabilities, targets[0].add_(targets[1]), out=targets[1]))
        if contrastive is not None:
            tile.diagonal(probabilities).sub_(2)
            contrastive.add(tile, probabilities)

    def _log_softmaxes(self, tile: Tile, index: int, memory: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of images over texts and of texts over images, in the buffers `memory`."""
        rows, columns = self.normalizers[index]
        logits = self.tiling.logits(tile, index, out=memory[0])
        over_texts = torch.sub(logits, rows[tile.rows], out=tile.shaped(memory[1]))
        return over_texts, logits.sub_(columns[tile.columns])

    def _divergence(self, tile: Tile, targets: Tensor, log_probabilities: Tensor) -> Tensor:
        """Return the sum of `targets * (log(targets) - log_probabilities)`; a target of zero contributes zero."""
        memory = tile.shaped(self.memory[3])
        torch.clamp_min(targets, torch.finfo(targets.dtype).tiny, out=memory)
        return memory.log_().sub_(log_probabilities).mul_(targets).sum()

    def _add_sigmoids(
        self, tile: Tile, bias: Tensor, contrastive: TermSum | None, distillation: TermSum | None
    ) -> None:
        logits = self.tiling.logits(tile, 0, out=self.memory[0]).add_(bias)
        if contrastive is not None:
            contrastive.value += _softplus(logits).sum() - tile.diagonal(logits).sum()
            by_logits = torch.sigmoid(logits, out=tile.shaped(self.memory[1]))
            tile.diagonal(by_logits).sub_(1)
            contrastive.add(tile, by_logits)
        if distillation is None:
            return
        targets = self._probabilities(tile)
        if self.release:
            signs = targets.mul_(2).sub_(1)
            product = torch.mul(signs, logits, out=tile.shaped(self.memory[2])).neg_()
            distillation.value += _softplus(product).sum()
            by_logits = product.sigmoid_().mul_(signs).neg_()
        else:
            entropy = torch.special.xlog1py(1 - targets, -targets).add_(torch.special.xlogy(targets, targets))
            distillation.value += entropy.add_(_softplus(logits)).sub_(targets * logits).sum()
            by_logits = logits.sigmoid_().sub_(targets)
        distillation.add(tile, by_logits)

    def _probabilities(self, tile: Tile) -> Tensor:
        """Return the probability that a pair matches, averaged over the teachers."""
        total = tile.shaped(self.memory[4]).zero_()
        for index, bias in self.teachers:
            if bias is None:
                for found in self._log_softmaxes(tile, index, self.memory[2:4]):
                    total.add_(found.exp_(), alpha=0.5)
            else:
                total.add_(self.tiling.logits(tile, index, out=self.memory[2]).add_(bias).sigmoid_())
        # If a teacher is sure of a pair, rounding may bring the probability above one, where the entropy is undefined.
        return total.div_(len(self.teachers)).clamp_max_(1)


def _softplus(logits: Tensor) -> Tensor:
    return F.logsigmoid(-logits).neg_()


# 2048 x 2048 in float32: large enough for a fast product, small enough that several tiles stay in a cache.
TILE_BYTES = 16 * 2**20


class Similarity:
    """The similarities `scale * image @ text.T` of this process's images with all texts, computed tile by tile.

    The class casts low-precision embeddings to float32 for each tile.

    Args:
        image: image embeddings of this process, (B, D), one per row of the similarities.
        text: text embeddings of all processes, (N, D), one per column of the similarities.
        scale: inverse temperature.
        dtype: dtype of the computation.
        normalize: whether to normalise embeddings to unit length first.
    """

    def __init__(
        self, image: Tensor, text: Tensor, scale: Tensor | float, *, dtype: torch.dtype, normalize: bool = False
    ) -> None:
        self.image, self.text, self.dtype = image, text, dtype
        self.image_factor = torch.as_tensor(scale, dtype=dtype, device=image.device).expand(len(image), 1)
        self.text_factor: Tensor | None = None
        if normalize:
            self.image_factor = self.image_factor / _length(image, dtype)
            self.text_factor = _length(text, dtype).reciprocal_()

    def images(self, rows: slice) -> Tensor:
        """Return the scaled image embeddings of a tile's rows."""
        return self.image[rows].to(self.dtype) * self.image_factor[rows]

    def texts(self, columns: slice) -> Tensor:
        """Return the text embeddings of a tile's columns."""
        block = self.text[columns].to(self.dtype)
        return block if self.text_factor is None else block * self.text_factor[columns]


def _length(embedding: Tensor, dtype: torch.dtype) -> Tensor:
    # The same minimum length as in `torch.nn.functional.normalize`, so that a zero embedding stays zero.
    length: Tensor = torch.linalg.vector_norm(embedding, dim=1, keepdim=True, dtype=dtype)
    return length.clamp_min_(1e-12)


@attrs.frozen(eq=False)
class Tile:
    """A rectangular block of the similarity matrices.

    Args:
        rows: range of rows, in this process's images.
        columns: range of columns, in the texts of all processes.
        offset: index of this process's first image in the whole batch.
    """

    rows: slice
    columns: slice
    offset: int

    def shaped(self, memory: Tensor) -> Tensor:
        """Return a view of scratch memory in the shape of this tile."""
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return memory[: height * width].view(height, width)

    def diagonal(self, values: Tensor) -> Tensor:
        """Return a view of the matching pairs in the tile's values; empty if the tile has no matching pair."""
        first, last = self.rows.start + self.offset, self.rows.stop + self.offset
        start, stop = max(first, self.columns.start), min(last, self.columns.stop)
        if start >= stop:
            return values.new_empty(0)
        inside = values[start - first : stop - first, start - self.columns.start : stop - self.columns.start]
        return inside.diagonal()


class Tiling:
    """Iterates over the tiles of equally shaped similarity matrices; a matrix that fits into one tile is computed once.

    Args:
        similarities: the student's similarities, then the similarities of each teacher.
        offset: index of this process's first image in the whole batch.
    """

    def __init__(self, similarities: Sequence[Similarity], *, offset: int) -> None:
        self.similarities = similarities
        num_rows, num_columns = len(similarities[0].image), len(similarities[0].text)
        self.like = similarities[0].image.new_empty(0, dtype=similarities[0].dtype)
        cells = max(1, TILE_BYTES // self.like.element_size())
        height = min(num_rows, max(math.isqrt(cells), cells // num_columns))
        width = min(num_columns, max(1, cells // height))
        self.cells = height * width
        self.tiles = [
            Tile(rows, columns, offset)
            for rows in _even_slices(num_rows, height)
            for columns in _even_slices(num_columns, width)
        ]
        self._kept: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    def scratch(self) -> Tensor:
        """Return an uninitialised buffer for one tile."""
        return self.like.new_empty(self.cells)

    def logits(self, tile: Tile, index: int, *, out: Tensor) -> Tensor:
        """Return a tile's logits from the similarities at `index`.

        If one tile covers the matrix, the second call returns the cached result.
        """
        if index in self._kept:
            return self._kept.pop(index)
        only = len(self.tiles) == 1
        one = self.similarities[index]
        memory = tile.shaped(self.scratch() if only else out)
        product = torch.mm(one.images(tile.rows), one.texts(tile.columns).mT, out=memory)
        if only:
            self._kept[index] = product
        return product


def _even_slices(length: int, size: int) -> list[slice]:
    num_parts = math.ceil(length / size)
    edges = [length * part // num_parts for part in range(num_parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def log_normalizers(tiling: Tiling, indices: Sequence[int], processes: Processes) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the log-sum-exp over rows and over columns of the selected similarity matrices, by index.

    Shape: (B, 1) for this process's images over all texts; (N,) for all texts over the images of all processes.
    """
    num_rows, num_columns = tiling.tiles[-1].rows.stop, tiling.tiles[-1].columns.stop
    found = {
        index: tuple(tiling.like.new_full(shape, -math.inf) for shape in ((num_rows, 1), (1, num_columns)))
        for index in indices
    }
    memory, spare = tiling.scratch(), tiling.scratch()
    for tile in tiling if found else ():
        for index, (over_texts, over_images) in found.items():
            logits = tiling.logits(tile, index, out=memory)
            for dim, known in ((1, over_texts[tile.rows]), (0, over_images[:, tile.columns])):
                largest = logits.amax(dim=dim, keepdim=True)
                total = torch.sub(logits, largest, out=tile.shaped(spare)).exp_().sum(dim=dim, keepdim=True)
                torch.logaddexp(known, total.log_().add_(largest), out=known)
    return {index: (rows, processes.logsumexp(columns[0])) for index, (rows, columns) in found.items()}


class Processes:
    """The processes of a group, or a single process.

    Args:
        group_name: name of the process group that shares the batch, with equal numbers of pairs; None for a single
            process.
    """

    def __init__(self, group_name: str | None) -> None:
        self.group: distributed.ProcessGroup | None = None
        self.rank, self.size = 0, 1
        if group_name is not None:
            from torch.distributed import distributed_c10d  # may be missing in a build of PyTorch

            resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]  # noqa: SLF001
            self.group = resolve(group_name)
            self.rank, self.size = distributed.get_rank(self.group), distributed.get_world_size(self.group)

    def agree(self, expected_equal: Mapping[str, int], error: ValueError | None, device: torch.device) -> None:
        """Raise an error in every process if one process has an error, or if values differ between processes.

        Without this check, the other processes would wait for a failed process in the next exchange.

        Args:
            expected_equal: values that must be equal in all processes, keyed by display name.
            error: error of this process's batch; None for a valid batch.
            device: device for collective operations of the group.

        Raises:
            ValueError: this process's error, or an error that names the failed process or the values that differ.
        """
        if self.group is None:
            if error is not None:
                raise error
            return
        mine = torch.tensor([int(error is None), *expected_equal.values()], dtype=torch.int64, device=device)
        sound, *columns = self.gather(mine[None]).T.tolist()
        if error is not None:
            raise error
        if not all(sound):
            raise ValueError(
                f"process {sound.index(0)} of {self.size} has an invalid batch; see the error of that process"
            )
        for name, values in zip(expected_equal, columns, strict=True):
            if len(set(values)) > 1:
                raise ValueError(
                    f"{name} must be equal in all processes, but the values by process are {values}; pass batches of "
                    "the same size and structure to all processes, and drop a smaller last batch"
                )

    def any(self, value: bool, device: torch.device) -> bool:  # noqa: FBT001
        """Return whether `value` is true in any process."""
        if self.group is None:
            return value
        flag = torch.tensor([int(value)], device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, self.group)
        return bool(flag.item())

    def gather(self, local: Tensor) -> Tensor:
        """Return the rows of all processes, in rank order.

        Shape: local (B, ...) -> (size * B, ...).
        """
        if self.group is None:
            return local
        local = local.contiguous()
        gathered = local.new_empty((self.size * local.shape[0], *local.shape[1:]))
        distributed.all_gather(list(gathered.chunk(self.size)), local, group=self.group)
        return gathered

    def scatter_sum(self, contributions: Tensor) -> Tensor:
        """Return this process's rows of the sum over processes; the backward pass of `gather`.

        Shape: contributions (size * B, ...) -> (B, ...).
        """
        if self.group is None:
            return contributions
        if distributed.get_backend(self.group) == "nccl":
            own = torch.empty_like(contributions.chunk(self.size)[self.rank])
            distributed.reduce_scatter_tensor(own, contributions, group=self.group)
            return own
        distributed.all_reduce(contributions, group=self.group)
        return contributions.chunk(self.size)[self.rank].clone()

    def mean(self, values: Tensor) -> Tensor:
        """Return the elementwise mean over processes."""
        if self.group is None:
            return values
        total = values.clone()
        distributed.all_reduce(total, group=self.group)
        return total / self.size

    def logsumexp(self, values: Tensor) -> Tensor:
        """Return the elementwise `log sum exp` over processes."""
        if self.group is None:
            return values
        largest = values.clone()
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, self.group)
        total = (values - largest).exp_()
        distributed.all_reduce(total, group=self.group)
        return total.log_().add_(largest)


_LIBRARY = torch.library.Library("mobileclip", "FRAGMENT")  # type: ignore[no-untyped-call]
# The fields of `EmbeddingBatch`, followed by the arguments of `pair_terms`.
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "pair_terms(Tensor image, Tensor text, Tensor? syn_text, Tensor logit_scale, Tensor? logit_bias, "
    "Tensor? teacher_image, Tensor? teacher_text, Tensor? teacher_syn_text, int[] teacher_dims, "
    "float[] teacher_logit_scales, float?[] teacher_biases, bool contrastive, bool release, str? group_name, "
    "bool gradients) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_NUM_INPUTS = 5  # inputs with gradients: image, text, syn_text, logit_scale, logit_bias
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tiled_terms(
    batch: EmbeddingBatch, *, contrastive: bool, distillation: bool, release: bool, group_name: str | None
) -> tuple[Tensor, Tensor]:
    """Return the contrastive and distillation terms with gradients; a skipped term is zero.

    Args:
        batch: this process's embeddings.
        contrastive: whether to compute the contrastive term.
        distillation: whether to compute the distillation term, which needs teachers.
        release: whether a sigmoid loss distils with the published code's formula; see `ReinforcedLossSpec`.
        group_name: name of the process group that shares the batch; None for a single process.

    Raises:
        ValueError: if the batch is invalid (see `EmbeddingBatch.check`), or the processes' batches differ in shape or
            dtype.
    """
    student = (batch.image, batch.text, batch.syn_text, batch.logit_scale, batch.logit_bias)
    gradients = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in student)
    operation = _Differentiable.apply if gradients else torch.ops.mobileclip.pair_terms.default
    found = [*operation(*batch, contrastive, release, group_name, gradients)]  # type: ignore[no-untyped-call]
    zero = batch.image.new_zeros((), dtype=compute_dtype(batch.image))
    return found.pop(0) if contrastive else zero, found[0] if distillation else zero


@torch.library.impl(_LIBRARY, "pair_terms", "CompositeExplicitAutograd")
def pair_terms(*arguments: Any) -> list[Tensor]:
    """Return the requested terms, summed over the caption sets, followed by the gradients of each term.

    Each term has gradients with respect to image, text and, if given, synthetic captions, followed by one vector for
    the scale and, if given, the bias.
    """
    *fields, contrastive, release, group_name, gradients = arguments
    batch, processes = EmbeddingBatch(*fields), Processes(group_name)
    _check(batch, processes)
    image, biased = batch.image, batch.logit_bias is not None
    wanted = processes.any(gradients, image.device)
    sums = [
        TermSum(image, dtype=compute_dtype(image), gradients=wanted, bias=biased) if term else None
        for term in (contrastive, batch.teacher_dims)
    ]
    active = [one for one in sums if one is not None]
    with torch.autocast(image.device.type, enabled=False):
        for text, teacher_text in batch.captions():
            captions = CaptionSet(batch, text, teacher_text, release=release, processes=processes)
            for one in active:
                one.begin(captions.student)
            captions.add_to(*sums)
            del captions  # frees the memory before the next caption set allocates memory
            for one in active:
                one.end(processes)
        found = [one.finish(len(image) * (1 if biased else 2), processes) for one in active]
    return [value for value, *_ in found] + [one for _, *by_inputs in found for one in by_inputs if gradients]


def _check(batch: EmbeddingBatch, processes: Processes) -> None:
    """Raise an error in every process unless the embeddings of all processes are consistent."""
    error: ValueError | None = None
    try:
        batch.check()
    except ValueError as found:
        error = found
    image = batch.image
    expected_equal = {
        "the number of pairs": image.shape[0] if image.ndim else 0,
        "the embeddings' dim": image.shape[-1] if image.ndim else 0,
        "the number of caption sets": len(batch.captions()),
    }
    exchanged = {
        "text embeddings": batch.text,
        "synthetic captions' embeddings": batch.syn_text,
        "teachers' text embeddings": batch.teacher_text,
        "teachers' synthetic captions": batch.teacher_syn_text,
    }
    for name, one in exchanged.items():
        expected_equal[f"the dtype of the {name}"] = (
            -1 if one is None or one.dtype not in _DTYPES else _DTYPES.index(one.dtype)
        )
    processes.agree(expected_equal, error, image.device)


@torch.library.register_fake("mobileclip::pair_terms", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shapes(*arguments: Any) -> list[Tensor]:
    *fields, contrastive, _, _, gradients = arguments
    batch = EmbeddingBatch(*fields)
    num_terms, dtype = contrastive + bool(batch.teacher_dims), compute_dtype(batch.image)
    found = [batch.image.new_empty((), dtype=dtype) for _ in range(num_terms)]
    for _ in range(num_terms if gradients else 0):
        embeddings = (batch.image, *(text for text, _ in batch.captions()))
        found += [torch.empty_like(one, dtype=dtype) for one in embeddings]
        found.append(batch.image.new_empty(1 if batch.logit_bias is None else 2, dtype=dtype))
    return found


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.mobileclip.pair_terms.default(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.like = [None if one is None else (one.shape, one.dtype, one.device) for one in inputs[:_NUM_INPUTS]]
        ctx.num_rest = len(inputs) - _NUM_INPUTS
        ctx.num_terms = sum(one.ndim == 0 for one in output)
        ctx.save_for_backward(*output[ctx.num_terms :])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        factors, others = outer[: ctx.num_terms], outer[ctx.num_terms :]
        # Compiled code passes zeros instead of None, and PyTorch itself rejects second derivatives of compiled code.
        if any(one is not None for one in others) and not torch.compiler.is_compiling():
            raise RuntimeError(
                "the tiled backend has no second derivative; use backend='dense' or mobileclip.losses.dense_loss, "
                "which can be differentiated twice"
            )
        found: list[Tensor | None] = [None] * _NUM_INPUTS
        share = len(ctx.saved_tensors) // ctx.num_terms
        for term, factor in enumerate(factors):
            image, text, *syn_text, shared = ctx.saved_tensors[term * share : (term + 1) * share]
            by_inputs = (image, text, syn_text[0] if syn_text else None, *shared, None)
            for place, gradient in enumerate(by_inputs[:_NUM_INPUTS]):
                if factor is not None and gradient is not None and ctx.needs_input_grad[place]:
                    known = found[place]
                    found[place] = factor * gradient if known is None else torch.addcmul(known, factor, gradient)
        fitted = (
            None if one is None else one.reshape(like[0]).to(dtype=like[1], device=like[2])
            for one, like in zip(found, ctx.like, strict=True)
        )
        return (*fitted, *[None] * ctx.num_rest)
