"""The fair table: mobileclip and the release in the same runtimes, each in its best form, paired in one run.

Command:   python -m benchmarks runtimes --output outputs/runtimes.json --weights WEIGHTS      (needs the extra `test`)
           python -m benchmarks runtimes --only s0-image-1 --output outputs/runtimes.json      (a first look)
           python -m benchmarks runtimes --models s0 --models s2 --thread-counts 2 --output outputs/runtimes.json
Hardware:  any CPU, otherwise idle; the quartiles show the uncertainty of the medians
Time:      minutes per case on two cores; the same command resumes an interrupted run
Result:    a table with a row for each side and form: milliseconds, the ratio to the release in the same form and to the
           release in its best form (below 1: faster) with quartiles, the smallest cosine, the selected variant, the
           checks. The rows `best` compare this library's best form with the release's best form; the end of the output
           repeats them

The release is open_clip's model (with timm's image tower), reparameterised by timm, with the same weights. Both sides
have the same inputs, threads, forms and variants: contiguous or channels-last feature maps, a large batch whole or in
fours, exporters, fixed sizes, NNCF's defaults and the same images for calibration. Layers outside int8 run in float32
or bfloat16, whichever is faster. Separate rounds select the variant of each form and the best form, which must pass the
checks of its precision. Models with random weights have norms for the package's images, so that different images have
different embeddings; --weights is more realistic. Texts fill the context; a causal tower also gets shorter texts, which
mobileclip cuts after their end if the form accepts any length. From bytes, each side runs in its best form and decodes
JPEGs with its own code, with the same number of threads; mobileclip also decodes at a reduced size, and OpenVINO gets
the decoded pixels. `--forms optimize --forms optimize_bf16` measures the choice of `mobileclip.optimize`, which takes a
minute each.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, cast

import attrs
import torch
from attrs import validators
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data import photo
from benchmarks.harness import (
    Bench,
    Case,
    Results,
    Row,
    Value,
    cell,
    in_turn,
    keep_memory,
    ratio,
    require,
    rounds_of,
    spread,
)
from benchmarks.inputs import read_captions, read_images
from benchmarks.rivals import PUBLISHED, Size, Tower, open_clip_transform, random_model, released
from benchmarks.runtime_forms import USUAL, Contender, Contestant, Form, fastest, has, missing, parts_of
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.data.images.transform import read_pixels
from mobileclip.encoders import DualEncoder, TextTransformerSpec, load_model
from mobileclip.hardware import torch_threads
from mobileclip.inference.comparison import (
    LEAST_COSINE,
    Calibration,
    bundled_samples,
    calibrations,
    smallest_cosine,
    times_in_turn,
    turn,
)
from mobileclip.inputs import TextInput
from mobileclip.reparam import reparameterize
from mobileclip.storage import printable
from mobileclip.tensor_files.weights import weights_sha256
from mobileclip.terminal import say

Key = tuple[str, Form]
Read = Callable[[bytes], Tensor]
REDUCED = "ours, reduced"
_OF_BEST = "of the release's best"
_MEASURED_ON = ("ranges", "measured")


@attrs.frozen(kw_only=True)
class RuntimesBenchSpec(Bench):
    """Settings of the comparison.

    Args:
        models: names of the models.
        towers: towers to measure.
        batch_sizes: numbers of images or texts per call.
        thread_counts: numbers of threads for all forms.
        text_lengths: numbers of ids per text, including start and end, for causal towers. Other towers compute all
            positions of the context anyway, and get the longest texts.
        only: prefixes of the names of the cases to measure; empty for all. A name has the model, tower, batch, threads
            and ids of texts, such as `s0-image-1-2` and `b-text-1-2-77`.
        forms: forms to measure; the benchmark skips and names forms whose packages are missing.
        from_bytes: whether to also measure images from JPEGs to embeddings.
        weights: folder with a file per model in training form, such as `s0.safetensors` or `s0.pt`. Models without a
            file have random weights, as do all models by default.
        data: images and captions for calibration and the checks, see `as_source`; by default the few of the package.
        num_inputs: number of images and of texts from the data, half for calibration and half for the checks.
        photo_side: longer side of the JPEGs, in pixels.
        rounds: number of rounds per form for one image or text; larger batches have a third as many.
        trial_rounds: number of rounds to select the variant and the best form; larger batches have one round.
        seed: seed of random weights and of the photos.
    """

    models: tuple[Size, ...] = ("s0", "s2", "b")
    towers: tuple[Tower, ...] = ("image", "text")
    batch_sizes: tuple[int, ...] = attrs.field(default=(1, 32), validator=validators.deep_iterable(validators.gt(0)))
    thread_counts: tuple[int, ...] = attrs.field(default=(1, 2), validator=validators.deep_iterable(validators.gt(0)))
    text_lengths: tuple[int, ...] = attrs.field(
        default=(8, 16, 32, 77), validator=validators.deep_iterable(validators.in_(range(3, 78)))
    )
    only: tuple[str, ...] = ()
    forms: tuple[Form, ...] = USUAL
    from_bytes: bool = True
    weights: Path | None = None
    data: tuple[str, ...] = ()
    num_inputs: int = attrs.field(default=256, validator=validators.ge(4))
    photo_side: int = attrs.field(default=1600, validator=validators.ge(64))
    rounds: int = attrs.field(default=15, validator=validators.gt(1))
    trial_rounds: int = attrs.field(default=3, validator=validators.gt(0))
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {
        "models": ("s0",),
        "batch_sizes": (1,),
        "thread_counts": (1,),
        "forms": ("eager", "onnxruntime"),
        "photo_side": 300,
        "rounds": 2,
        "trial_rounds": 1,
    }
    selects: ClassVar[frozenset[str]] = frozenset(
        ("models", "towers", "batch_sizes", "thread_counts", "text_lengths", "only")
    )

    def cases(self) -> Iterator[Case]:
        """Yield every tower of every model; each batch size and number of threads has its own process.

        Raises:
            ValueError: if no name of a case has one of the prefixes.
        """
        require("timm", "open_clip", "torchvision")
        named: dict[str, Case] = {}
        for model, tower, batch_size, threads in product(
            self.models, self.towers, self.batch_sizes, self.thread_counts
        ):
            for length in self.lengths(model, tower):
                labels = {"model": model, "tower": tower, "batch": str(batch_size), "threads": str(threads)}
                labels |= {"ids": str(length)} if length else {}
                task = partial(measure, self, model, tower, batch_size, threads, length=length)
                named["-".join(labels.values())] = Case(labels=labels, measure=task, apart=True)
        for beginning in self.only:
            if not any(name.startswith(beginning) for name in named):
                raise ValueError(f"no case begins with {beginning!r}; known cases: {', '.join(named)}")
        yield from (case for name, case in named.items() if not self.only or name.startswith(self.only))

    def lengths(self, size: Size, tower: Tower) -> tuple[int, ...]:
        """Return the numbers of ids per text of a tower; 0 for images."""
        if tower == "image":
            return (0,)
        spec = PUBLISHED[size].spec().text
        is_causal = isinstance(spec, TextTransformerSpec) and spec.causal
        return self.text_lengths if is_causal else (max(self.text_lengths),)

    def trials(self, batch_size: int) -> int:
        """Return the number of rounds to select a variant and the best form."""
        return self.trial_rounds if batch_size == 1 else 1

    def finish(self, results: Results) -> None:
        """Print this library's best form against the release's best form with the same checks, case by case.

        Raises:
            ValueError: if rows of a tower have different weights or data.
        """
        digests: dict[tuple[str, ...], tuple[str, ...]] = {}
        for row in results.rows:
            tower = tuple(row.case.get(name, "") for name in ("model", "tower"))
            own = tuple(row.notes.get(name, "") for name in ("weights", "data"))
            if any(own) and digests.setdefault(tower, own) != own:
                raise ValueError(f"rows of {' '.join(tower)} have different weights or data; give another --output")
        for row in results.rows:
            if row.case.get("form") == "best":
                named = " ".join(one for name, one in row.case.items() if name != "form")
                say(f"{named}: {cell(row.values[_OF_BEST])}, {row.notes['chosen']}")


def measure(
    spec: RuntimesBenchSpec, size: Size, tower: Tower, batch_size: int, threads: int, *, length: int
) -> list[Row]:
    """Return the times of both sides in every form; memory settings, threads and seed persist in the process."""
    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(spec.seed)
    match = match_of(spec, size, tower, batch_size, length=length)
    with TemporaryDirectory() as folder:
        return list(compare(match, spec, Path(folder)))


@torch.no_grad()
def compare(match: Match, spec: RuntimesBenchSpec, folder: Path) -> Iterator[Row]:
    """Yield rows for each side and form, from bytes only for the best, and a row for the best forms; failures last."""
    made: dict[Key, Contender] = {}
    failed: dict[Key, str] = {}
    trials, rounds = spec.trials(len(match.inputs)), rounds_of(spec.rounds, batch_size=len(match.inputs))
    for form, one in product(spec.forms, match.sides):
        if not has(one.side, form):
            continue
        key: Key = (one.side, form)
        if why := missing(form):
            failed[key] = why
            continue
        try:
            variants = one.contenders(form, match.inputs, match.calibration.ranges, folder / f"{one.side}_{form}")
            made[key] = fastest(list(variants), match.inputs, rounds=trials)
        except Exception as error:  # noqa: BLE001 - compilers and runtimes raise what they like; the others go on
            failed[key] = printable(f"{type(error).__name__}: {' '.join(str(error).split())}")
    verdicts = {key: check(key[1], one, match) for key, one in made.items()}
    checks = {key: one["checks"] for key, one in verdicts.items()}
    tried = times_in_turn([partial(one.encode, match.inputs) for one in made.values()], rounds=trials)
    best = best_forms(dict(zip(made, tried, strict=True)), checks)
    release = match.sides[0].module
    digests = {
        "weights": release.state_dict(),
        "data": {name: getattr(match.calibration, name) for name in _MEASURED_ON},
    }
    told = {name: weights_sha256(tensors)[:12] for name, tensors in digests.items()}
    notes = {
        key: {"chosen": str(one), **verdicts[key], "checks": checks[key] or "passed", **told}
        for key, one in made.items()
    }
    source = "pixels" if match.sides[0].tower == "image" else "ids"
    given = {key: partial(one.encode, match.inputs) for key, one in made.items()}
    yield from rows_of(source, *timed(given, release(match.inputs), rounds=rounds), best, notes)
    if match.files and spec.from_bytes and best:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            read = {side: partial(_read, pool, reader, match.files) for side, reader in match.readers.items()}
            keys = [(side, best[_owner(side)]) for side in read if _owner(side) in best]
            given = {
                (side, form): partial(_embed, read[side], made[_owner(side), form], match.transform)
                for side, form in keys
            }
            taken = timed(given, release(read["release"]()), rounds=rounds)
        yield from rows_of("bytes", *taken, best, notes)
    for (side, form), why in failed.items():
        yield Row(case={"from": source, "side": side, "form": form}, failure=why)


def check(form: Form, contender: Contender, match: Match) -> dict[str, str]:
    """Return as `checks` why a form is not accurate enough (empty if it is), and the results of each check."""
    precision = parts_of(form)[1]
    measured, size = match.calibration.measured, len(match.inputs)
    # Programs take whole batches.
    whole = measured[torch.arange(-(-len(measured) // size) * size) % len(measured)]
    given = torch.cat([contender.encode(part) for part in torch.split(whole, size)])[: len(measured)]
    expected = match.sides[0].module(measured)
    cosine, same = smallest_cosine(given, expected), match.calibration.same_first(given, expected)
    short = "" if cosine >= LEAST_COSINE[precision] else f"the cosine is {cosine:.4f}, below {LEAST_COSINE[precision]}"
    return {
        "checks": "; ".join(filter(None, (short, match.calibration.refusal(given, expected)))),
        "least cosine": f"{cosine:.4f}",
        "first results": f"{int(same.sum())} of {len(same)}",
    }


def best_forms(times: Mapping[Key, Sequence[float]], checks: Mapping[Key, str]) -> dict[str, Form]:
    """Return each side's form with the minimum median time among the forms that passed their checks.

    Args:
        times: times of each side's forms.
        checks: reason why a form is not accurate enough; empty if it passed.
    """
    best: dict[str, Form] = {}
    for side, form in sorted(times, key=lambda key: statistics.median(times[key])):
        if not checks[side, form]:
            best.setdefault(side, form)
    return best


def rows_of(
    source: str,
    ms: Mapping[Key, Sequence[float]],
    cosines: Mapping[Key, float],
    best: Mapping[str, Form],
    notes: Mapping[Key, Mapping[str, str]],
) -> Iterator[Row]:
    """Yield a row for each side and form, and for this library's best form against the release's best form.

    Args:
        source: kind of the inputs of the embeddings.
        ms: milliseconds of calls in turn, by side and form.
        cosines: smallest cosine with the release's eager float32 embeddings.
        best: best form of each side.
        notes: notes on each side's forms.
    """
    rival = ms.get(("release", best["release"])) if "release" in best else None
    for (side, form), times in ms.items():
        values = {"time": spread(times, "ms"), "cosine": Value(number=cosines[side, form], unit="cosine")}
        if side != "release" and ("release", form) in ms:
            values["ratio"] = ratio(times, ms["release", form])
        if rival is not None:
            values[_OF_BEST] = ratio(times, rival)
        yield Row(case={"from": source, "side": side, "form": form}, values=values, notes=notes[_owner(side), form])
    for side in dict.fromkeys(side for side, _ in ms if side != "release" and _owner(side) in best):
        if rival is not None:
            form = best[_owner(side)]
            values = {_OF_BEST: ratio(ms[side, form], rival)}
            told = {"chosen": f"{form} against {best['release']}"}
            yield Row(case={"from": source, "side": side, "form": "best"}, values=values, notes=told)


def timed(
    given: Mapping[Key, Callable[[], Tensor]], expected: Tensor, *, rounds: int
) -> tuple[dict[Key, list[float]], dict[Key, float]]:
    """Return the milliseconds of every call, made in turn, and its smallest cosine with the expected embeddings."""
    cosines = {key: smallest_cosine(call(), expected) for key, call in given.items()}
    calls: dict[str, Callable[[], tuple[float, float]]] = {
        f"{side} {form}": partial(turn, call) for (side, form), call in given.items()
    }
    taken = in_turn(calls, rounds=rounds)
    return {(side, form): [one for one, _ in taken[f"{side} {form}"]] for side, form in given}, cosines


def _owner(side: str) -> str:
    """Return the owner of the forms that a side uses."""
    return "ours" if side == REDUCED else side


def _read(pool: ThreadPoolExecutor, reader: Read, files: tuple[bytes, ...]) -> Tensor:
    inputs = map(reader, files) if len(files) == 1 else pool.map(reader, files)
    return torch.stack(list(inputs))


def _embed(read: Callable[[], Tensor], contender: Contender, transform: ImageTransform | None) -> Tensor:
    found = read()
    if transform is None or found.is_floating_point():
        return contender.encode(found)
    if contender.takes_pixels:
        return contender.encode(transform.as_images(found))
    # Like the library, since its threads would keep waiting for work in parallel with the runtime's threads.
    with torch_threads(1):
        inputs = transform.normalize(found)
    return contender.encode(inputs)


@attrs.frozen(kw_only=True, eq=False)
class Match:
    """Both sides of a tower with their inputs.

    Args:
        sides: the release's tower and this library's.
        inputs: a batch of inputs.
        calibration: inputs for calibration, and inputs for the checks.
        files: encoded images; empty for texts.
        readers: functions from a file to an input or to pixels, by side.
        transform: transform from pixels to inputs; None for texts.
    """

    sides: tuple[Contestant, Contestant]
    inputs: Tensor
    calibration: Calibration
    files: tuple[bytes, ...] = ()
    readers: Mapping[str, Read] = attrs.field(factory=dict)
    transform: ImageTransform | None = None


def match_of(spec: RuntimesBenchSpec, size: Size, tower: Tower, batch_size: int, *, length: int) -> Match:
    """Return both sides of a published model's tower, with the same weights, and texts of `length` ids."""
    published = PUBLISHED[size]
    file = None if spec.weights is None else next(spec.weights.glob(f"{size}.*"), None)
    if file is None:
        model = random_model(published.spec())
    else:
        model = cast("DualEncoder", load_model(file, published.spec(), fold=False))
    release = released(published, model, tower)
    release.requires_grad_(requires_grad=False)
    folded = reparameterize(model).requires_grad_(requires_grad=False)
    mine = folded.image_encoder if tower == "image" else folded.text_encoder
    transform, tokenizer = ImageTransform(model.spec.image.input), Tokenizer(model.spec.text.input)
    of_images, of_texts = calibrations(folded, calibration_inputs(spec, transform, tokenizer) if spec.data else None)
    sides = (
        Contestant(side="release", module=release, mine=mine, tower=tower),
        Contestant(side="ours", module=mine, mine=mine, tower=tower),
    )
    if tower == "text":
        return Match(sides=sides, inputs=texts_of(model.spec.text.input, length, batch_size), calibration=of_texts)
    files = tuple(photo(number, spec.photo_side, quality=90, seed=spec.seed) for number in range(batch_size))
    return Match(
        sides=sides,
        inputs=torch.stack([transform(data) for data in files]),
        calibration=of_images,
        files=files,
        readers=readers_of(transform),
        transform=transform,
    )


def texts_of(contract: TextInput, length: int, batch_size: int) -> Tensor:
    """Return texts of `length` ids that begin with different captions of the package, followed by padding."""
    captions = bundled_samples().captions
    texts = [" ".join(captions[first:] + captions[:first]) for first in range(len(captions))]
    ids = Tokenizer(attrs.evolve(contract, context_length=length))(texts)
    ids = ids[torch.arange(batch_size) % len(ids)]
    return F.pad(ids, (0, contract.context_length - length), value=contract.pad_id)


def calibration_inputs(
    spec: RuntimesBenchSpec, transform: ImageTransform, tokenizer: Tokenizer
) -> tuple[Tensor, Tensor]:
    """Return images and token ids from the spec's data."""
    pixels = read_images(spec.data, transform, spec.num_inputs)
    return transform.normalize(pixels), tokenizer(read_captions(spec.data, spec.num_inputs, seed=spec.seed))


def readers_of(transform: ImageTransform) -> dict[str, Read]:
    """Return each side's JPEG reader: open_clip's preprocessing, and this library's exact and reduced pixels.

    Args:
        transform: image transform of the model.
    """
    preprocess = open_clip_transform(transform.image_input)

    def read(data: bytes, *, reduced: bool) -> Tensor:
        return torch.from_numpy(read_pixels(data, transform, reduced=reduced))

    def read_as_released(data: bytes) -> Tensor:
        file = io.BytesIO(data)
        return preprocess(Image.open(file, formats=("JPEG",)))

    return {
        "release": read_as_released,
        "ours": partial(read, reduced=False),
        REDUCED: partial(read, reduced=True),
    }
