"""A model that computes in int8 as it does in float32, tuned by itself on pictures and texts of any kind: one file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar, cast

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.data import BadSampleError, ImageTransform, Tokenizer
from mobileclip.data.images.files import find_images
from mobileclip.data.images.limits import ImageError
from mobileclip.data.randomness import seeded_rng
from mobileclip.data.skips import SkipReport
from mobileclip.datasets.sources import as_source, read_text_pairs
from mobileclip.datasets.sources.opening import is_gathered, require_data_set
from mobileclip.encoders import DualEncoder, DualEncoderSpec, ImageEncoderSpec, TextEncoderSpec, save_model
from mobileclip.encoders.checkpoints import ModelSpec, Stored, read_checkpoint
from mobileclip.encoders.checkpoints.published import is_export
from mobileclip.encoders.families import image_spec, text_spec
from mobileclip.inference.comparison import bundled_samples
from mobileclip.inference.embedding import gathered_pictures
from mobileclip.inference.identity import converted_from
from mobileclip.inference.loading import place_of
from mobileclip.inference.quantization import (
    PlacesSpec,
    SavedTunings,
    TowerQuality,
    Tuning,
    TuningSpec,
    batches_of,
    layers_in_float32,
    num_checked,
    quantised_layers,
    rounded,
    state_file,
    with_rounded_weights,
)
from mobileclip.progress import Progress
from mobileclip.reparam import reparameterize, with_children
from mobileclip.serialization import to_json
from mobileclip.storage import require_output
from mobileclip.strict import strict
from mobileclip.tensor_files import weights_sha256
from mobileclip.terminal import console

T = TypeVar("T")


def read_pictures(
    places: Sequence[str],
    transform: ImageTransform,
    most: int,
    *,
    seed: int,
    skipped: list[str],
    shown: bool = True,
) -> Tensor:
    """Return pictures as a model sees them, upright.

    Shape:
        `(pictures, size, size, 3)`, uint8.

    Args:
        places: image files, folders with images, and data sets, see `as_source`.
        transform: of the model.
        most: pictures; of more files some are taken, of data sets the first.
        seed: of the choice.
        skipped: takes why a picture was left out.
        shown: whether to show how far it is.
    """
    for place in places:
        if is_gathered(place):
            require_data_set(place)
    files = [path for place in places if not is_gathered(place) for path in find_images(Path(place))[0]]
    report = SkipReport(log=False)
    named: Iterator[tuple[str, Path | bytes]] = ((str(path), path) for path in some_of(files, len(files), seed))
    gathered = (one for place in places if is_gathered(place) for one in gathered_pictures(place, report))
    found = []
    with Progress("reading pictures", total=None, unit="pictures", console=console(shown=shown)) as bar:
        for name, source in chain(named, gathered):
            try:
                found.append(torch.from_numpy(transform.pixels(source, name=name)))
            except ImageError as error:
                skipped.append(str(error))
            bar.advance()
            if len(found) == most:
                break
    skipped += [f"{skip.key} of {skip.shard}: {skip.detail}" for several in report.named.values() for skip in several]
    return torch.stack(found) if found else torch.empty(0, 0)


def read_captions(places: Sequence[str], most: int, *, seed: int, skipped: list[str]) -> list[str]:
    """Return texts, no two equal.

    Args:
        places: files of texts, see `read_text_pairs`; folders with pictures and captions, see `as_source`.
        most: texts; of more, some are taken.
        seed: of the choice.
        skipped: takes why a text was left out.
    """
    found: dict[str, None] = {}
    for place in places:
        if Path(place).is_dir():
            report = SkipReport(log=False)
            source = as_source(place)
            for sample in chain.from_iterable(unit.described(report) for unit in source.units()):
                found |= dict.fromkeys(sample.captions)
            continue
        require_data_set(place)
        for pair in read_text_pairs(place):
            if isinstance(pair, BadSampleError):
                skipped.append(pair.detail)
            else:
                found[pair.text] = None
    return some_of(list(found), most, seed)


def some_of(items: Sequence[T], most: int, seed: int) -> list[T]:
    """Return items in an order drawn at random, so many at most.

    Args:
        items: in any order.
        most: that are returned.
        seed: of the order.
    """
    return [items[index] for index in drawn_order(len(items), seed)[:most]]


def drawn_order(count: int, seed: int) -> list[int]:
    """Return numbers from 0 in an order drawn at random, the same everywhere.

    Args:
        count: of the numbers.
        seed: of the order.
    """
    order: list[int] = np.argsort(seeded_rng(seed, "inputs").random(count), kind="stable").tolist()
    return order


Tower = Literal["image", "text"]

FEWEST = 8
"""Pictures, or texts: a quarter of them is held out."""

# Inputs that ranges are found with, those at once, and of a tower that is measured; a layer's range settles soon.
_OBSERVED, _AT_ONCE = 128, 16


@attrs.frozen(kw_only=True, field_transformer=strict)
class QuantizationSpec:
    """A model's towers tuned to compute in int8.

    Args:
        model: a name, or a file, as `mobileclip.load` takes it; or a tower alone.
        checkpoint: weights of the model.
        images: image files, folders with images, and data sets, as `mobileclip embed` takes them; without any, the
            image tower stays in float32.
        texts: files of texts and data sets with captions; without any, the text tower stays in float32.
        output: the file to write, `*.safetensors`.
        num_images: pictures that are used, of more a choice.
        num_texts: texts that are used, of more a choice.
        held_out: part of either that the result is measured on.
        most_held_out: inputs of a tower that it is measured on at most.
        batch_size: inputs of a step.
        places: which layers are rounded, and where.
        tuning: how long, and by what.
        seed: of the choices, and of the order of the inputs.
        seconds_between_saves: after which the state of a tuning is written beside the output.
        overwrite: whether a file that is there is replaced.

    Raises:
        ValueError: if a number is out of its range.

    Examples:
        >>> spec = QuantizationSpec(model="icons", images=("photos",), output="int8.safetensors")
        >>> spec.batch_size, spec.tuning.num_steps
        (8, 200)
    """

    model: str | None = None
    checkpoint: str | None = None
    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    output: Path = attrs.field(converter=Path)
    num_images: int = attrs.field(default=512, validator=validators.ge(FEWEST))
    num_texts: int = attrs.field(default=2048, validator=validators.ge(FEWEST))
    held_out: float = attrs.field(default=0.25, validator=[validators.gt(0), validators.lt(1)])
    most_held_out: int = attrs.field(default=256, validator=validators.ge(2))
    batch_size: int = attrs.field(default=8, validator=validators.ge(2))
    places: PlacesSpec = attrs.field(factory=PlacesSpec)
    tuning: TuningSpec = attrs.field(factory=TuningSpec)
    seed: int = attrs.field(default=0, validator=validators.ge(0))
    seconds_between_saves: float = attrs.field(default=20.0, validator=validators.ge(0))
    overwrite: bool = False

    def run(self, *, show_progress: bool = True) -> QuantizationReport:
        """Tune the towers, write the model, and return what was measured; goes on where it was stopped.

        Raises:
            ValueError, OSError: if the model, the pictures or the texts cannot be used, or the file not be written.
        """
        # What a killed run has left to go on with replaces what it may have written.
        is_begun = state_file(self.output).exists()
        require_output(self.output, overwrite=self.overwrite or is_begun, suffixes=(".safetensors",))
        return _Run(self, show_progress=show_progress).done()


@attrs.frozen(kw_only=True)
class QuantizationReport:
    """The accuracy of a quantised model, and the layers that stay in float32.

    Args:
        towers: of each tower that was quantised, on inputs that were held out.
        seconds_per_step: of each tower that was tuned now; nothing where it had been before.
        float32: layers of each tower that stay in float32.
        skipped: pictures and texts that could not be used, and why.
    """

    towers: dict[Tower, TowerQuality]
    seconds_per_step: dict[Tower, float]
    float32: dict[Tower, tuple[str, ...]] = attrs.field(factory=dict)
    skipped: tuple[str, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether an acceptance check refuses a tower."""
        return any(one.refusal for one in self.towers.values())

    def __str__(self) -> str:
        """Return a line for each tower."""
        return "\n".join(f"{tower} tower: {one}" for tower, one in self.towers.items())


@attrs.frozen(kw_only=True, eq=False)
class _Inputs:
    """Inputs of a tower as they are kept: pixels are made ready when they are encoded."""

    rows: Tensor
    ready: Callable[[Tensor], Tensor]

    def part(self, chosen: Tensor | slice) -> _Inputs:
        return _Inputs(rows=self.rows[chosen], ready=self.ready)

    def batches(self, most: int | None = None) -> Iterator[Tensor]:
        return map(self.ready, torch.split(self.rows[:most], _AT_ONCE))


class _Run:
    """A model that is being quantised."""

    def __init__(self, spec: QuantizationSpec, *, show_progress: bool) -> None:
        self.spec, self._shown, self._console = spec, show_progress, console(shown=show_progress)
        self.skipped: list[str] = []
        self._wanted, self._place = place_of(spec.model, spec.checkpoint)
        self._stored = _stored(self._place, self._wanted)
        self.model = reparameterize(self._stored.build(), inplace=True).requires_grad_(requires_grad=False)
        self.towers = _towers_of(self.model, self._place, images=bool(spec.images), texts=bool(spec.texts))
        self.inputs = {tower: self._read(tower) for tower in self.towers}
        self._saved = SavedTunings(spec.output, of=self._digest(), anew=spec.overwrite)

    def done(self) -> QuantizationReport:
        """Return what was measured, after the file was written."""
        made: dict[Tower, nn.Module] = {}
        seconds: dict[Tower, float] = {}
        for tower in self.towers:
            made[tower], took = self._tuned(tower)
            seconds |= {tower: took} if took else {}
        report = QuantizationReport(
            towers={tower: self._measured(tower, one) for tower, one in made.items()},
            seconds_per_step=seconds,
            float32={tower: tuple(layers_in_float32(one)) for tower, one in made.items()},
            skipped=tuple(self.skipped),
        )
        written: nn.Module
        if isinstance(self.model, DualEncoder):
            written = with_children(self.model, {f"{tower}_encoder": one for tower, one in made.items()})
        else:
            (written,) = made.values()
        written.taught = converted_from(self._place, self._wanted, self._stored)  # type: ignore[assignment]
        save_model(written, self.spec.output)
        self._saved.remove()
        return report

    def _read(self, tower: Tower) -> tuple[_Inputs, _Inputs]:
        """Return the inputs of a tower that it is tuned on, and those that are held out."""
        spec, module = self.spec, self.towers[tower]
        if tower == "image":
            transform = ImageTransform(image_spec(module).input)
            rows = read_pictures(
                spec.images, transform, spec.num_images, seed=spec.seed, skipped=self.skipped, shown=self._shown
            )
            inputs = _Inputs(rows=rows, ready=partial(_channels_innermost, transform))
        else:
            texts = read_captions(spec.texts, spec.num_texts, seed=spec.seed, skipped=self.skipped)
            rows = Tokenizer(text_spec(module).input)(texts) if texts else torch.empty(0, 0)
            inputs = _Inputs(rows=rows, ready=_as_they_are)
        if len(rows) < FEWEST:
            flag = "--images" if tower == "image" else "--texts"
            raise ValueError(
                f"{flag} has {len(rows)} inputs that can be used, expected at least {FEWEST}, and better hundreds; "
                "give more"
            )
        num_held = max(2, min(spec.most_held_out, int(spec.held_out * len(rows))))
        order = torch.tensor(drawn_order(len(rows), spec.seed))
        return inputs.part(order[num_held:]), inputs.part(order[:num_held])

    def _digest(self) -> str:
        """Return what tells this tuning from others: the model, the inputs and the choices that decide the result."""
        digest = hashlib.sha256(weights_sha256(self.model.state_dict()).encode())
        digest.update((to_json(self.spec.tuning) + to_json(self.spec.places)).encode())
        digest.update(f"{self.spec.batch_size} {self.spec.seed}".encode())
        for tower, parts in self.inputs.items():
            digest.update(tower.encode())
            for part in parts:
                digest.update(part.rows.numpy().tobytes())
        return digest.hexdigest()

    def _tuned(self, tower: Tower) -> tuple[nn.Module, float]:
        """Return a tower with weights on their grid and its ranges, and the seconds of a step that was made now."""
        spec, module, (given, _) = self.spec, self.towers[tower], self.inputs[tower]
        num_judged = num_checked(len(given.rows))
        inputs, checked = given.part(slice(num_judged, None)), list(given.part(slice(num_judged)).batches())
        kept = self._saved.of_tower(tower)
        ranges = {name.removeprefix("ranges/"): one for name, one in kept.items() if name.startswith("ranges/")}
        state = {name.removeprefix("state/"): one for name, one in kept.items() if name.startswith("state/")}
        ranges = ranges or self._ranges(tower, module, inputs, checked)
        draw = batches_of(inputs.rows, batch_size=spec.batch_size, seed=spec.seed)
        tuning = Tuning(module, ranges, lambda step: inputs.ready(draw(step)), spec.tuning, checked=checked)
        if state:
            tuning.restore(state)

        def keep() -> None:
            found = {f"state/{name}": one for name, one in tuning.state().items()}
            self._saved.keep(tower, found | {f"ranges/{name}": one for name, one in ranges.items()})

        began, saved, first = time.monotonic(), time.monotonic(), tuning.step
        title, total = f"tuning the {tower} tower", spec.tuning.num_steps
        with Progress(title, total=total, done=first, unit="steps", console=self._console) as bar:
            while not tuning.done:
                loss = tuning.advance()
                bar.advance(detail=f"loss {loss:.1e}")
                if time.monotonic() - saved >= spec.seconds_between_saves or tuning.done:
                    keep()
                    saved = time.monotonic()
        made = tuning.step - first
        return with_rounded_weights(module, tuning.tower), (time.monotonic() - began) / made if made else 0.0

    def _ranges(self, tower: Tower, module: nn.Module, inputs: _Inputs, checked: list[Tensor]) -> dict[str, Tensor]:
        """Return the ranges that tuning starts from, of the layers that are to be rounded."""
        num_batches = -(-min(_OBSERVED, len(inputs.rows)) // _AT_ONCE)
        title = f"looking at the {tower} tower"
        with Progress(title, total=2 * num_batches, unit="batches", console=self._console) as bar:

            def batches() -> Iterator[Tensor]:
                for batch in inputs.batches(_OBSERVED):
                    yield batch
                    bar.advance()

            ranges = self.spec.places.observed(module, batches)
        title, total = f"choosing layers of the {tower} tower", len(quantised_layers(ranges))
        with Progress(title, total=total, unit="layers", console=self._console) as bar:
            return self.spec.places.without_worst(
                module, ranges, checked, others=self._others(tower), tell=lambda _: bar.advance()
            )

    @torch.no_grad()
    def _measured(self, tower: Tower, made: nn.Module) -> TowerQuality:
        _, held_out = self.inputs[tower]
        form = rounded(made, cast("dict[str, Tensor]", made.ranges))
        num_batches = -(-len(held_out.rows) // _AT_ONCE)
        title = f"measuring the {tower} tower"
        with Progress(title, total=num_batches, unit="batches", console=self._console) as bar:
            rows = []
            for batch in held_out.batches():
                rows.append((form(batch), self.towers[tower](batch)))
                bar.advance()
        given, expected = (torch.cat(list(one)) for one in zip(*rows, strict=True))
        return TowerQuality.of(given, expected, self._others(tower))

    def _others(self, tower: Tower) -> Tensor | None:
        """Return embeddings of the other tower in float32: of what was held out of it, or of what the package has."""
        if not isinstance(self.model, DualEncoder):
            return None
        if tower == "text":
            images = self.inputs.get("image")
            transform = ImageTransform(self.model.spec.image.input)
            rows = [transform(one) for one in bundled_samples().images] if images is None else []
            batches: Iterator[Tensor] = iter([torch.stack(rows)]) if images is None else images[1].batches()
            return torch.cat([self.model.image_encoder(batch) for batch in batches])
        texts = self.inputs.get("text")
        if texts is None:
            return cast(
                "Tensor", self.model.text_encoder(Tokenizer(self.model.spec.text.input)(bundled_samples().captions))
            )
        return torch.cat([self.model.text_encoder(batch) for batch in texts[1].batches()])


def _stored(place: str | Path, wanted: str | ModelSpec | None) -> Stored:
    if is_export(place):
        raise ValueError(f"{place} is an export; give the checkpoint that it was exported from")
    stored = read_checkpoint(place, wanted)
    if stored.ranges:
        raise ValueError(f"{place} is quantised already; give the model that it was made of")
    if not isinstance(stored.spec, (DualEncoderSpec, ImageEncoderSpec, TextEncoderSpec)):
        raise ValueError(f"{place} holds a classifier; give an image-text model, or a tower of one")
    return stored


def _towers_of(model: nn.Module, place: str | Path, *, images: bool, texts: bool) -> dict[Tower, nn.Module]:
    """Return the towers that there are inputs for."""
    there: dict[Tower, nn.Module]
    if isinstance(model, DualEncoder):
        there = {"image": model.image_encoder, "text": model.text_encoder}
    else:
        there = {"image" if isinstance(model.spec, ImageEncoderSpec) else "text": model}
    wanted: dict[Tower, bool] = {"image": images, "text": texts}
    if not images and not texts:
        raise ValueError("there is nothing to tune the model on; give --images FOLDER, --texts FILE, or both")
    if absent := [tower for tower, given in wanted.items() if given and tower not in there]:
        flag = "--images" if absent[0] == "image" else "--texts"
        raise ValueError(f"{place} has no {absent[0]} tower, and {flag} is given; leave it out")
    return {tower: module for tower, module in there.items() if wanted[tower]}


def _channels_innermost(transform: ImageTransform, pixels: Tensor) -> Tensor:
    """Return images as convolutions on a processor take less time with."""
    return transform.normalize(pixels).contiguous(memory_format=torch.channels_last)


def _as_they_are(tokens: Tensor) -> Tensor:
    return tokens
