"""Helpers for encoding texts: label prompts, a cache of embeddings, and the choice between text towers."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.encoders import DualEncoder
from mobileclip.encoders.checkpoints.saving import NO_PROVENANCE
from mobileclip.inference.forms import with_towers
from mobileclip.strict import repeated

if TYPE_CHECKING:
    from mobileclip.data.text.ngrams import KnownNgrams
    from mobileclip.data.text.tokenizer import Tokenizer


def ensemble_prompts(text: Tensor) -> Tensor:
    """Return one unit-length embedding per class: the normalised mean of the normalised prompt embeddings.

    Shape:
        text: `(classes, templates, dim)`; result: `(classes, dim)`.

    Source: Radford et al., "Learning Transferable Visual Models", section 3.1.4.
    """
    return F.normalize(F.normalize(text.float(), dim=-1).mean(dim=1), dim=-1)


def fill_templates(labels: Sequence[str], template: str | Sequence[str]) -> list[str]:
    """Return the prompts for labels: all templates with the first label, then all with the next label, and so on.

    Args:
        labels: at least one label; duplicates are allowed, as in ImageNet's class names.
        template: one or more prompt templates with `{}` for the label, such as `a photo of a {}.`.

    Raises:
        ValueError: if `labels` or `template` is empty, or a template has no `{}`.
    """
    templates = as_templates(template)
    if not labels:
        raise ValueError("there are no labels; expected at least one class name")
    return [one.replace("{}", label) for label in labels for one in templates]


def require_labels(labels: Sequence[str], template: str | Sequence[str]) -> None:
    """Raise an error unless the labels and the template are valid for classification.

    Args:
        labels: at least one label; no label may be blank or duplicated.
        template: one or more prompt templates with `{}` for the label.

    Raises:
        ValueError: if there is no label, a label is blank or duplicated, or a template has no `{}`.
    """
    if isinstance(labels, str) or not labels:
        raise ValueError('labels must be a list of at least one text, such as "a cat" and "a dog"')
    if not all(label.strip() for label in labels):
        raise ValueError("a label is blank; remove the label, or replace it by a text")
    if twice := repeated(labels):
        raise ValueError(f"labels must be unique, but some labels are given twice: {', '.join(twice[:5])}")
    as_templates(template)


def as_templates(template: str | Sequence[str]) -> tuple[str, ...]:
    """Return one or several templates as a tuple.

    Raises:
        ValueError: if `template` is empty, or a template has no `{}`.
    """
    templates = (template,) if isinstance(template, str) else tuple(template)
    if not templates:
        raise ValueError("there is no template; omit `template` to use the bare labels, or pass 'a photo of a {}'")
    for one in templates:
        if "{}" not in one:
            raise ValueError(f"the template {one!r} has no {{}} for the label, as in 'a photo of a {{}}'")
    return templates


MOST_BYTES = 2**28
"""Maximum memory of a model's text cache, in bytes: about 120,000 short texts with 512-dimensional embeddings."""

_SAMPLED = 4


class TextEmbeddingCache:
    """A thread-safe least-recently-used cache of text embeddings.

    Two threads that request the same new text at the same time may encode the text twice. An unpickled cache is empty.

    Args:
        max_bytes: maximum size of all embeddings and texts together, in bytes.
    """

    def __init__(self, *, max_bytes: int = MOST_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._num_bytes = 0
        self._of: Hashable = None

    def __reduce__(self) -> tuple[type[TextEmbeddingCache], tuple[()]]:
        """Pickle the cache as an empty cache."""
        return type(self), ()

    def embeddings(self, texts: Sequence[str], encode: Callable[[list[str]], Tensor], *, of: Hashable = None) -> Tensor:
        """Return the embeddings of texts in the given order; encode each distinct new text once.

        Shape:
            result: `(texts, dim)`.

        Args:
            texts: texts to look up or encode, at least one.
            encode: function that maps unique texts to embeddings, `(texts, dim)`, on the CPU.
            of: fingerprint of the towers, from `state_of`; a change clears the cache.
        """
        with self._lock:
            if of != self._of:
                self._rows.clear()
                self._num_bytes, self._of = 0, of
            found = {text: self._rows[text] for text in texts if text in self._rows}
            for text in found:
                self._rows.move_to_end(text)
        if new := [text for text in dict.fromkeys(texts) if text not in found]:
            # Copy rows: a view of one row would keep all rows in memory.
            rows = {text: row.clone() for text, row in zip(new, encode(new), strict=True)}
            found |= rows
            self._keep(rows, of)
        return torch.stack([found[text] for text in texts])

    def _keep(self, rows: dict[str, Tensor], of: Hashable) -> None:
        with self._lock:
            if of == self._of:
                fresh = rows.keys() - self._rows.keys()
                self._num_bytes += sum(_size(text, rows[text]) for text in fresh)
                self._rows |= rows
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= _size(*self._rows.popitem(last=False))


def _size(text: str, row: Tensor) -> int:
    return sys.getsizeof(text) + row.nbytes


@attrs.frozen(eq=False)
class TextSide:
    """A text tower within a dual encoder, with its tokenizer and the n-grams of its training data.

    Args:
        model: a dual encoder with the text tower, in evaluation mode.
        tokenizer: tokenizer of the text tower.
        known: n-grams of the text tower's training data; None if the checkpoint has no record.
    """

    model: DualEncoder
    tokenizer: Tokenizer
    known: KnownNgrams | None

    @classmethod
    def of(cls, model: DualEncoder, tower: nn.Module | None = None) -> TextSide:
        """Return the text side of a model, or of the model with another text tower `tower`.

        Raises:
            ValueError: if the embedding dimensions of the image tower and the text tower differ.
        """
        from mobileclip.data.text.ngrams import KnownNgrams
        from mobileclip.data.text.tokenizer import Tokenizer

        model = model if tower is None else with_towers(model, text_encoder=tower)
        packed = getattr(model.text_encoder, "provenance", NO_PROVENANCE).ngrams
        # A tower may have its own tokenizer, which the spec does not describe.
        tokenizer = getattr(model.text_encoder, "tokenizer", None) or Tokenizer(model.spec.text.input)
        return cls(model, tokenizer, None if packed is None else KnownNgrams(packed))

    @property
    def device(self) -> torch.device:
        """Device of the text tower, for token ids."""
        weight = next(self.model.text_encoder.parameters(), self.model.logit_scale)
        return weight.device


def state_of(sides: Iterable[TextSide]) -> Hashable:
    """Return a fingerprint of the weights of text towers: addresses, version counters and some values.

    PyTorch's version counters ignore writes through `.data`, so the fingerprint includes values.
    """
    towers = [side.model.text_encoder for side in sides]
    tensors = [tensor for tower in towers for tensor in (*tower.parameters(), *tower.buffers()) if tensor.numel()]
    few = [tensor.detach().flatten()[:: max(1, tensor.numel() // _SAMPLED)].float() for tensor in tensors]
    written = tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors)  # noqa: SLF001
    return written, torch.cat(few).cpu().numpy().tobytes() if few else b""


def routed(texts: Sequence[str], sides: Sequence[TextSide]) -> list[list[int]]:
    """Assign each text to the tower that knows the most n-grams of the text; return each tower's text indices.

    On a tie, the first of the tied towers gets the text. A tower without a record of n-grams knows none.
    """
    if len(sides) == 1:
        return [list(range(len(texts)))]
    numbers: list[list[int]] = [[] for _ in sides]
    for number, text in enumerate(texts):
        shares = [0.0 if side.known is None else side.known.share(text) for side in sides]
        numbers[shares.index(max(shares))].append(number)
    return numbers
