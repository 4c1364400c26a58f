"""Caption generation: greedy, sampled or beam search."""

from __future__ import annotations

from typing import Literal

import attrs
import torch
from attrs import validators
from torch import Tensor

from mobileclip.encoders.coca.model import CaptionState, CoCa
from mobileclip.inputs import TextInput
from mobileclip.strict import strict

_OUT = -1e9


@attrs.frozen(kw_only=True, field_transformer=strict)
class GenerationSpec:
    """The decoding strategy of a captioner: greedy, sampled or beam search.

    Args:
        strategy: `greedy` selects the most probable id, `top_k` and `top_p` sample among the most probable ids, `beam`
            keeps several captions, see `Beams`.
        top_k: number of candidate ids for the strategy `top_k`.
        top_p: cumulative probability of the candidate ids for the strategy `top_p`, in (0, 1].
        temperature: sampling temperature, above 0, applied after the selection of candidates.
        num_beams: beams per image. Two beams equal open_clip's 6 beams in 3 groups, since open_clip's groups never
            differ.
        min_length: minimum number of ids before the end id, including the start id.
        max_length: maximum number of ids per caption, including the start and end ids.

    Raises:
        ValueError: if a number is out of range, or `max_length` is not above `min_length`.

    Source: open_clip's `CoCa.generate`: same options and, except for beams, same defaults.
    """

    strategy: Literal["greedy", "top_k", "top_p", "beam"] = attrs.field(
        default="top_p", validator=validators.in_(("greedy", "top_k", "top_p", "beam"))
    )
    top_k: int = attrs.field(default=50, validator=validators.gt(0))
    top_p: float = attrs.field(default=0.9, validator=[validators.gt(0), validators.le(1)])
    temperature: float = attrs.field(default=1.0, validator=validators.gt(0))
    num_beams: int = attrs.field(default=2, validator=[validators.gt(0), validators.le(1 << 8)])
    min_length: int = attrs.field(default=5, validator=validators.gt(0))
    max_length: int = attrs.field(default=30, validator=validators.gt(1))

    def __attrs_post_init__(self) -> None:
        """Check that `max_length` is above `min_length`."""
        if self.max_length <= self.min_length:
            raise ValueError(f"max_length={self.max_length} must be greater than min_length={self.min_length}")


@torch.no_grad()
def generate(
    model: CoCa, images: Tensor, spec: GenerationSpec | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return the token ids of one caption per image: start id, caption, end id, padding.

    With the key-value cache, the model computes only one position for each new id.

    Shape:
        images `(batch, channels, size, size)` to `(batch, ids)`, at most `max_length` ids.

    Args:
        model: the captioner, in evaluation mode.
        images: preprocessed images.
        spec: generation options.
        generator: random number generator; None for PyTorch's default generator. With the same seed, the ids equal
            open_clip's ids.

    Raises:
        ValueError: if `max_length` exceeds the model's context length, or the tokenizer has no start token.

    Source: open_clip's `CoCa.generate`. Differs: beams never contain padding; open_clip's beams may contain padding.

    Examples:
        >>> text = TextTransformerSpec(width=16, depth=1, num_heads=2, embedding_dim=16, causal=True)
        >>> image = ViTSpec(width=24, depth=1, num_heads=2, embedding_dim=16)
        >>> model = mobileclip.encoders.coca.CoCaSpec(image=image, text=text, decoder_depth=1, num_queries=9).build()
        >>> spec = mobileclip.encoders.coca.GenerationSpec(strategy="greedy", max_length=8)
        >>> mobileclip.encoders.coca.generate(model.eval(), torch.rand(2, 3, 224, 224), spec)[:, 0]
        tensor([49406, 49406])
    """
    spec = GenerationSpec() if spec is None else spec
    text = model.spec.text.input
    if text.start_id is None:
        raise ValueError("captions begin with a start token, but this model's tokenizer has no start token")
    if spec.max_length > text.context_length:
        raise ValueError(f"max_length is {spec.max_length}, but the model's context length is {text.context_length}")
    _, image_tokens = model.image_tokens(images)
    num_captions = spec.num_beams if spec.strategy == "beam" else 1
    state = model.start(image_tokens, num_captions=num_captions, max_length=spec.max_length)
    ids = torch.full((len(images) * num_captions, 1), text.start_id, device=images.device)
    if spec.strategy == "beam":
        return _beam_search(model, state, ids, spec)
    while ids.shape[1] < spec.max_length:
        ended = (ids[:, -1] == text.end_id) | (ids[:, -1] == text.pad_id)
        if ended.all():
            break
        logits = _allowed(model.step(state, ids[:, -1]), ids.shape[1], text, spec)
        chosen = torch.full_like(ids[:, 0], text.pad_id)
        if ids.shape[1] + 1 == spec.max_length:
            chosen[~ended] = text.end_id
        else:
            chosen[~ended] = _chosen(logits[~ended], spec, generator)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    return ids


def _allowed(logits: Tensor, length: int, text: TextInput, spec: GenerationSpec) -> Tensor:
    """Return logits with minus infinity for an early end, and for padding within beams."""
    logits = logits.clone()
    if length < spec.min_length:
        logits[:, text.end_id] = -torch.inf
    if spec.strategy == "beam":
        logits[:, text.pad_id] = -torch.inf
    return logits


def _chosen(logits: Tensor, spec: GenerationSpec, generator: torch.Generator | None) -> Tensor:
    """Return the next id of every row."""
    if spec.strategy == "greedy":
        return logits.argmax(dim=-1)
    if spec.strategy == "top_k":
        least = logits.topk(min(spec.top_k, logits.shape[-1])).values[:, -1:]
        left_out = logits < least
    else:
        ascending, order = logits.sort(dim=-1)
        beyond = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - spec.top_p
        beyond[:, -1] = False
        left_out = beyond.scatter(1, order, beyond)
    probabilities = (logits.masked_fill(left_out, -torch.inf) / spec.temperature).softmax(dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


@attrs.define(kw_only=True)
class Beams:
    """The best finished captions of an image, by `score = sum of logits / number of ids`.

    Args:
        size: number of beams.
        found: scores and ids of finished captions.
        done: whether the search is over; `close` sets this value.
    """

    size: int
    found: list[tuple[float, Tensor]] = attrs.field(factory=list)
    done: bool = False

    def add(self, ids: Tensor, total: float, length: int) -> None:
        """Add a finished caption, and drop the worst caption if there are too many.

        Args:
            ids: ids of the caption, without the end id.
            total: sum of the caption's logits.
            length: number of ids; the score is `total / length`.
        """
        score = total / length
        worst = min(range(len(self.found)), key=lambda place: self.found[place][0], default=0)
        if len(self.found) < self.size:
            self.found.append((score, ids))
        elif score > self.found[worst][0]:
            del self.found[worst]
            self.found.append((score, ids))

    def close(self, best_total: float, length: int) -> None:
        """Set `done` if `size` captions are finished, and no unfinished caption scores above the worst finished one.

        Args:
            best_total: highest sum of logits among the unfinished captions.
            length: current number of ids per caption.
        """
        enough = len(self.found) >= self.size
        self.done = self.done or (enough and min(score for score, _ in self.found) >= best_total / length)


def _beam_search(model: CoCa, state: CaptionState, ids: Tensor, spec: GenerationSpec) -> Tensor:
    """Return the best caption of every image; like open_clip, add logits instead of log probabilities."""
    text, size = model.spec.text.input, spec.num_beams
    images = len(ids) // size
    beams = [Beams(size=size) for _ in range(images)]
    totals = torch.full((images, size), _OUT, device=ids.device)
    totals[:, 0] = 0.0
    while True:
        logits = _allowed(model.step(state, ids[:, -1]), ids.shape[1], text, spec)
        vocab_size = logits.shape[-1]
        scores = (logits.view(images, size, vocab_size) + totals[..., None]).view(images, -1)
        best, places = scores.topk(2 * size, dim=1)
        rows, tokens = [], []
        for image, beam in enumerate(beams):
            split = (divmod(place, vocab_size) for place in places[image].tolist())
            candidates = [(total, *one) for total, one in zip(best[image].tolist(), split, strict=True)]
            kept = _next_beams(beam, candidates, ids[image * size : (image + 1) * size], text)
            totals[image] = totals.new_tensor([total for total, _, _ in kept])
            rows += [image * size + row for _, row, _ in kept]
            tokens += [token for _, _, token in kept]
        order = torch.tensor(rows, device=ids.device)
        ids = torch.cat([ids[order], torch.tensor(tokens, device=ids.device)[:, None]], dim=1)
        state.reorder(order)
        if all(beam.done for beam in beams) or ids.shape[1] >= spec.max_length:
            break
    for image, beam in enumerate(beams):
        for row in range(size) if not beam.done else ():
            beam.add(ids[image * size + row], float(totals[image, row]), ids.shape[1])
    captions = [max(beam.found, key=lambda one: one[0])[1] for beam in beams]
    length = min(max(map(len, captions)) + 1, spec.max_length)
    result = torch.full((images, length), text.pad_id, device=ids.device)
    for row, caption in zip(result, captions, strict=True):
        row[: len(caption)] = caption
        row[len(caption) : len(caption) + 1] = text.end_id
    return result


def _next_beams(
    beam: Beams, candidates: list[tuple[float, int, int]], ids: Tensor, text: TextInput
) -> list[tuple[float, int, int]]:
    """Return sums, rows and next ids of the unfinished captions, and add finished captions to the beams.

    Args:
        beam: finished captions of the image.
        candidates: sums, rows and next ids, the highest sum first.
        ids: ids of the captions so far.
        text: input contract with the end id and the padding id.
    """
    if beam.done:
        return [(0.0, 0, text.pad_id)] * beam.size
    kept: list[tuple[float, int, int]] = []
    length = ids.shape[1] + 1
    for rank, (total, row, token) in enumerate(candidates):
        if token != text.end_id:
            kept.append((total, row, token))
        elif rank < beam.size:
            beam.add(ids[row].clone(), total, length)
        if len(kept) == beam.size:
            break
    beam.close(candidates[0][0], length)
    return kept
