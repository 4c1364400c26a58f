"""Selects the fastest accurate backend for each tower on this machine, and reports all measurements."""

from __future__ import annotations

import copy
import json
import platform
import statistics
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.transform import ImageTransform, normalize_pixels
from mobileclip.encoders import DualEncoder, ImageEncoderSpec, TextEncoderSpec
from mobileclip.encoders.towers import check_images, check_tokens
from mobileclip.hardware import FAST_PRECISIONS, FastPrecision, dtype_of
from mobileclip.inference.comparison import (
    LARGEST_ERROR,
    LEAST_COSINE,
    Calibration,
    calibrations,
    largest_error,
    median_ratio,
    smallest_cosine,
    times_in_turn,
)
from mobileclip.inference.forms import (
    MOST_IMAGES_ON_CPU,
    PreparedTower,
    ReadyDualEncoder,
    causal_pool,
    reads_text,
    truncate_to_longest,
    with_depthwise_convs,
    with_one_token,
    with_towers,
)
from mobileclip.inference.openvino_backend import Program, int8_model, openvino_program
from mobileclip.progress import track
from mobileclip.reparam import reparameterize

if TYPE_CHECKING:
    from mobileclip.inference.image_text_model import ImageTextModel

Engine = Literal["eager", "openvino"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
"""Names of the engines; `eager`, the first engine, needs no compiled program."""

WORTH_TRYING = 200
"""Number of images whose encoding takes about as long as measuring the backends of a tower."""

WORTH_COMPILING = 1000
"""Number of images whose encoding takes about as long as compiling a tower with OpenVINO."""

_FEW = 4
_TEXT = "a photo of two people who walk along an old harbour"
# Number of images for timing, and number of images for int8: one half for ranges, the other half for comparison.
_TIMED, _CALIBRATED = 16, 64


@attrs.frozen(kw_only=True)
class Form:
    """A backend of a reparameterized tower: engine, precision and batch size.

    Args:
        engine: `eager` for PyTorch, or `openvino`.
        precision: precision of weights and features; with int8, only convolutions and linear layers are int8.
            Embeddings are float32.
        max_batch_size: maximum batch size. The tower splits a larger batch; a small maximum keeps features in the CPU's
            cache.
    """

    engine: Engine
    precision: FastPrecision
    max_batch_size: int

    def __str__(self) -> str:
        """Return the backend's name in reports."""
        return f"{self.engine} {self.precision}, {self.max_batch_size} at once"


@attrs.frozen(kw_only=True)
class Trial:
    """The measurements of one backend.

    Args:
        form: the measured backend.
        milliseconds: median latency of the example batch; None for a refused backend, which is not timed.
        speed_up: median ratio of the plain tower's time to the backend's time in the same round; None without timing.
        cosine: minimum cosine with the plain tower's embeddings (for int8, on held-out inputs); None if compilation
            failed.
        error: largest relative error of an embedding; None if compilation failed.
        refused: reason why `optimize` refused the backend; empty if the backend is usable.
    """

    form: Form
    milliseconds: float | None = None
    speed_up: float | None = None
    cosine: float | None = None
    error: float | None = None
    refused: str = ""

    def __str__(self) -> str:
        """Return the measurements in one line."""
        parts = [f"{self.form!s:28s}"]
        if self.milliseconds is not None and self.speed_up is not None:
            parts.append(f"{self.milliseconds:8.1f} ms, {self.speed_up:.2f} times as fast")
        if self.cosine is not None and self.error is not None:
            parts.append(f"cosine {self.cosine:.6f}, error {self.error:.1e}")
        if self.refused:
            parts.append(f"not usable: {self.refused}")
        return "; ".join(parts)


@attrs.frozen(kw_only=True)
class TowerReport:
    """The measured backends of one tower, with latency and error.

    Args:
        tower: `image` or `text`.
        batch_size: batch size of the example inputs.
        plain_milliseconds: median latency of the original tower.
        trials: measured backends, in the order of measurement.
        used: the fastest usable backend; None if the plain reparameterized tower is the fastest.
    """

    tower: str
    batch_size: int
    plain_milliseconds: float
    trials: tuple[Trial, ...]
    used: Trial | None

    def __str__(self) -> str:
        """Return one line per trial, with a star for the selected backend."""
        lines = [f"{self.tower}, batch of {self.batch_size}: {self.plain_milliseconds:.1f} ms originally"]
        lines += [f"  {'*' if trial == self.used else ' '} {trial}" for trial in self.trials]
        if self.used is None:
            lines.append("  * none of these is faster; the plain folded tower is used")
        return "\n".join(lines)


@attrs.frozen(kw_only=True)
class OptimizationReport:
    """The report of `optimize`: the measured backends of both towers.

    Args:
        image: report of the image tower.
        text: report of the text tower.
        threads: number of PyTorch's CPU threads during the measurement.
        processor: model name of the processor.
    """

    image: TowerReport
    text: TowerReport
    threads: int
    processor: str

    def __str__(self) -> str:
        """Return the report as readable text."""
        return f"{self.processor}, {self.threads} threads\n{self.image}\n{self.text}"

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(attrs.asdict(self), indent=2)


class OptimizedTower(PreparedTower):
    """A folded tower that runs on one backend, for batches of any size.

    A compiled program has a fixed batch size; eager PyTorch encodes the remainder of a batch, so no call waits for a
    compiler. Embeddings are float32 tensors without gradients.

    Shape:
        images `(batch, 3, size, size)`, float or uint8, or token ids `(batch, context_length)`, to `(batch,
        embedding_dim)`.

    Args:
        tower: a reparameterized float32 tower on the CPU; the constructor copies the tower.
        form: engine, precision and batch size of the tower.

    Raises:
        ValueError: if the shape or dtype of inputs does not fit the tower.
    """

    def __init__(self, tower: nn.Module, *, form: Form) -> None:
        super().__init__()
        self.form = form
        # OpenVINO accepts float32, and rounds to a lower precision itself.
        self.dtype = torch.float32 if form.engine == "openvino" else dtype_of(form.precision)
        self.tower = copy.deepcopy(with_depthwise_convs(with_one_token(tower))).to(self.dtype)
        if not reads_text(tower):
            self.tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._pool = causal_pool(tower)
        self.eval()
        self._program: Program | None = None

    @property
    def spec(self) -> ImageEncoderSpec | TextEncoderSpec:
        """The spec of the tower."""
        return cast("ImageEncoderSpec | TextEncoderSpec", self.tower.spec)

    @property
    def takes_pixels(self) -> bool:
        """Whether the tower also accepts uint8 pixels; true for image towers."""
        return isinstance(self.spec, ImageEncoderSpec)

    def int8_model(self, calibration: Calibration) -> Any:
        """Return the int8 model for programs of any batch size; see `mobileclip.inference.openvino_backend`."""
        lengths = self._pool is not None
        ranges = calibration.ranges if lengths else self._prepared(calibration.ranges)
        return int8_model(self.tower, ranges, lengths=lengths)

    def compile_for(self, inputs: Tensor, *, int8: Any = None) -> None:
        """Compile the program for batches of `form.max_batch_size`, if the backend uses a program.

        Args:
            inputs: at least `form.max_batch_size` images or texts.
            int8: model from `int8_model`, for int8 programs; None for other precisions.

        Raises:
            Exception: any error of the compiler, for example if OpenVINO is not installed or cannot compile the tower.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            lengths = self._pool is not None
            # For texts of any length, the untruncated example sets the maximum length.
            example = (inputs if lengths else self._prepared(inputs))[: self.form.max_batch_size].clone()
            if self.form.engine == "openvino":
                spec = self.spec
                self._program = openvino_program(
                    self.tower,
                    example,
                    lengths=lengths,
                    precision=self.form.precision,
                    int8=int8,
                    pixels=spec.input if isinstance(spec, ImageEncoderSpec) else None,
                )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings without normalisation."""
        with torch.no_grad():
            prepared = self._prepared(inputs)
            parts = [self._encode(part) for part in torch.split(prepared, self.form.max_batch_size)]
            return torch.cat(parts).float()

    def _prepared(self, inputs: Tensor) -> Tensor:
        """Check the inputs, and return them in the backend's memory format."""
        spec = self.spec
        if isinstance(spec, TextEncoderSpec):
            check_tokens(inputs, spec.input)
            return inputs if self._pool is None else truncate_to_longest(inputs, self._pool)
        check_images(inputs, spec.input)
        if inputs.dtype == torch.uint8:
            return inputs
        if self.form.engine == "openvino":
            # Convert with NumPy, because PyTorch's threads would spin while OpenVINO's threads compute.
            return torch.from_numpy(np.ascontiguousarray(inputs.detach().float().numpy()))
        return inputs.to(self.dtype, memory_format=torch.channels_last)

    def _encode(self, part: Tensor) -> Tensor:
        if self._program is not None and len(part) == self.form.max_batch_size:
            return self._program(part)
        spec = self.spec
        if isinstance(spec, ImageEncoderSpec) and part.dtype == torch.uint8:
            part = normalize_pixels(part, spec.input, memory_format=torch.channels_last).to(self.dtype)
        rest: Tensor = self.tower(part)
        return rest


class OptimizedDualEncoder(ReadyDualEncoder):
    """A dual encoder whose towers run on the fastest accurate backends of this machine.

    The `report` attribute lists all measured backends.
    """

    report: OptimizationReport


def optimize(
    model: DualEncoder,
    example: tuple[Tensor, Tensor] | None = None,
    *,
    precision: FastPrecision = "float32",
    calibration: tuple[Tensor, Tensor] | None = None,
    compiled: bool = True,
    rounds: int = 7,
    show_progress: bool = True,
) -> OptimizedDualEncoder:
    """Return a copy of the model with the fastest accurate backends on this machine, and a report.

    For each tower, `optimize` measures eager PyTorch (reparameterized, channels last, texts truncated) and OpenVINO
    programs, with full and with small batches. PyTorch runs in float32 and, unless `precision` is `float32`, in
    bfloat16. OpenVINO runs in `precision`, or for `int8` in all three precisions; int8 has static ranges and excludes
    grouped convolutions. A backend must compile, run faster than the original tower, and be accurate. In float32, the
    error may be at most 1e-5; in bfloat16, the cosine must be at least 0.9995. In int8, on held-out inputs, the cosine
    must be at least 0.98, and the first result must be the same for 99 of 100 queries (within a 95 % confidence
    interval). `.report` gives the reason for each refused backend.

    Args:
        model: a float32 model in evaluation mode on the CPU, in training form or folded.
        example: a batch of images and a batch of token ids; `optimize` compiles programs for both batch sizes. The
            towers split batches of other sizes, and encode the remainder in eager mode. By default one image and one
            text.
        precision: lowest allowed precision.
        calibration: for int8, at least four images and four rows of token ids: half for ranges, half for comparison. By
            default the images and captions bundled with the package.
        compiled: whether to also measure OpenVINO programs, which int8 requires. Compiling a program takes seconds and
            needs the extra `openvino`.
        rounds: number of timed calls of each backend.
        show_progress: whether to show the progress and the elapsed time on standard error.

    Raises:
        ValueError: if the model is in training mode, not in float32 or not on the CPU, or the precision is unknown.

    Examples:
        >>> image = mobileclip.encoders.ViTSpec(width=16, depth=1, num_heads=2)
        >>> text = mobileclip.encoders.MCtSpec(width=16, depth=0, num_heads=2)
        >>> model = mobileclip.encoders.DualEncoderSpec(image=image, text=text).build().eval()
        >>> fast, images = optimize(model, compiled=False, rounds=1, show_progress=False), torch.rand(1, 3, 224, 224)
        >>> torch.allclose(fast.encode_image(images), model.encode_image(images), atol=1e-4)
        True
    """
    _check(model, precision=precision, rounds=rounds)
    with torch.inference_mode(mode=False), torch.no_grad():
        images, tokens = _example(model) if example is None else example
        search = partial(
            optimize_tower,
            precision=precision,
            engines=ENGINES if compiled else ENGINES[:1],
            rounds=rounds,
            show_progress=show_progress,
        )
        of_images, of_texts = calibrations(model, calibration) if precision == "int8" else (None, None)
        image_encoder, image_report = search(model.image_encoder, images, calibration=of_images)
        text_encoder, text_report = search(model.text_encoder, tokens, calibration=of_texts)
        fast = with_towers(model, image_encoder=image_encoder, text_encoder=text_encoder, kind=OptimizedDualEncoder)
        fast.logit_scale = nn.Parameter(model.logit_scale.detach().clone(), requires_grad=False)
        fast.report = OptimizationReport(
            image=image_report, text=text_report, threads=torch.get_num_threads(), processor=processor()
        )
        return fast


@torch.inference_mode(mode=False)
@torch.no_grad()
def optimize_tower(
    plain: nn.Module,
    inputs: Tensor,
    *,
    precision: FastPrecision = "float32",
    calibration: Calibration | None = None,
    engines: tuple[Engine, ...] = ENGINES,
    rounds: int = 7,
    show_progress: bool = False,
) -> tuple[nn.Module, TowerReport]:
    """Return one tower with the fastest accurate backend, and the report of the measurements; see `optimize`.

    Args:
        plain: a float32 tower in evaluation mode on the CPU, in training form or folded.
        inputs: images or tokenised texts in the expected batch size.
        precision: lowest allowed precision.
        calibration: calibration inputs for int8; by default the images or captions bundled with the package.
        engines: engines to measure, `eager` or `openvino`.
        rounds: number of timed calls of each backend.
        show_progress: whether to show the progress on standard error.

    Raises:
        ValueError: if `inputs` is empty, the tower is in training mode, not in float32 or not on the CPU, or the
            precision is unknown.
    """
    _check(plain, precision=precision, rounds=rounds)
    tower = "text" if reads_text(plain) else "image"
    if not len(inputs):
        raise ValueError(f"the example has no {tower}s; pass a batch of the size to optimize for, at least 1")
    folded = reparameterize(plain)
    forms = list(_forms(len(inputs), precision=precision, engines=engines))
    expected: Tensor = plain(inputs)
    expected_measured, int8 = expected, None
    if any(form.precision == "int8" for form in forms):
        spec = cast("ImageEncoderSpec | TextEncoderSpec", plain.spec)
        calibration = calibration or Calibration.of_package(spec.input)
        expected_measured = plain(calibration.measured)
    towers: dict[Form, OptimizedTower] = {}
    trials: dict[Form, Trial] = {}
    for form in track(forms, total=len(forms), title=f"trying the {tower} tower", unit="forms", shown=show_progress):
        candidate = OptimizedTower(folded, form=form)
        try:
            if form.precision == "int8":
                assert calibration is not None, "the code above created the calibration"
                int8 = int8 or candidate.int8_model(calibration)
                candidate.compile_for(inputs, int8=int8)
                # Compare on held-out inputs, since the example may be noise, which exceeds all ranges. Fill all
                # batches, since eager float32 would encode the remainder of a batch.
                count = len(calibration.measured)
                whole = calibration.measured[
                    torch.arange(-(-count // form.max_batch_size) * form.max_batch_size) % count
                ]
                trial = _compared(form, candidate(whole)[:count], expected_measured, calibration)
            else:
                candidate.compile_for(inputs)
                trial = _compared(form, candidate(inputs), expected)
        except Exception as error:  # noqa: BLE001 - compilers raise any error, and there are other backends
            said = [type(error).__name__, *str(error).strip().splitlines()[:1]]
            trial = Trial(form=form, refused=f"cannot be compiled on this machine: {': '.join(said)}")
        trials[form] = trial
        if not trial.refused:
            towers[form] = candidate
    plain_times, *others = times_in_turn([partial(each, inputs) for each in (plain, *towers.values())], rounds=rounds)
    for form, times in zip(towers, others, strict=True):
        trials[form] = attrs.evolve(
            trials[form], milliseconds=statistics.median(times), speed_up=median_ratio(plain_times, times)
        )
    used = max((trials[form] for form in towers), key=lambda trial: trial.speed_up or 0, default=None)
    if used is not None and (used.speed_up or 0) <= 1:
        used = None
    report = TowerReport(
        tower=tower,
        batch_size=len(inputs),
        plain_milliseconds=statistics.median(plain_times),
        trials=tuple(trials.values()),
        used=used,
    )
    return (folded if used is None else towers[used.form]), report


def select_backend(
    clip: ImageTextModel,
    images: Iterable[Path],
    num_images: int,
    *,
    precision: FastPrecision,
    show_progress: bool,
) -> ImageTextModel:
    """Return a copy of the model whose image tower uses the fastest backend; see `mobileclip.optimize`.

    For few images, on GPUs, or if a tower already has a backend, the function returns the model unchanged.

    Args:
        clip: image-text model.
        images: image files to encode; the function measures the backends with the first images.
        num_images: approximate number of images to encode.
        precision: lowest allowed precision.
        show_progress: whether to show the progress on standard error.
    """
    device = next(clip.model.parameters()).device.type
    if num_images < WORTH_TRYING or device != "cpu" or type(clip.model) is not DualEncoder:
        return clip
    compiling = num_images >= WORTH_COMPILING
    calibrating = compiling and precision == "int8"
    tried = islice(images, _CALIBRATED if calibrating else _TIMED)
    seen = [found for path in tried if (found := _readable(clip.transform, path)) is not None]
    given = clip.transform.normalize(torch.stack(seen)) if calibrating and len(seen) >= _TIMED else None
    tower, _ = optimize_tower(
        clip.model.image_encoder,
        _examples(clip.transform, seen),
        precision=precision,
        calibration=None if given is None else Calibration.of(given),
        engines=ENGINES if compiling else ENGINES[:1],
        rounds=2,
        show_progress=show_progress,
    )
    ready = with_towers(clip.model, image_encoder=tower, kind=ReadyDualEncoder)
    return type(clip)(ready, num_threads=clip.num_threads, text_towers=clip.text_towers, decode=clip.decode)


def _examples(transform: ImageTransform, seen: Sequence[Tensor]) -> Tensor:
    """Return a batch of the images in `seen`, filled up with noise."""
    size = transform.image_input.size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (MOST_IMAGES_ON_CPU, size, size, 3), dtype=torch.uint8, generator=generator)
    return transform.normalize(torch.stack([*seen, *noise][:MOST_IMAGES_ON_CPU]))


def _readable(transform: ImageTransform, path: Path) -> Tensor | None:
    try:
        return torch.from_numpy(transform.pixels(path))
    except ImageError:
        return None


def processor() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine() or "CPU"


def _check(model: nn.Module, *, precision: str, rounds: int) -> None:
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    if precision not in FAST_PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(FAST_PRECISIONS)}, not {precision!r}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    found = {(weight.dtype, weight.device.type) for weight in model.parameters()}
    if found != {(torch.float32, "cpu")}:
        named = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in found))
        raise ValueError(
            f"optimize needs a float32 model on the CPU, but the weights are {named}; load the "
            "model with dtype=torch.float32 and device='cpu', and pass precision='bfloat16' to optimize"
        )


def _example(model: DualEncoder) -> tuple[Tensor, Tensor]:
    from mobileclip.data.text.tokenizer import Tokenizer

    image = model.spec.image.input
    images = torch.rand(1, image.channels, image.size, image.size, generator=torch.Generator().manual_seed(0))
    return images, Tokenizer(model.spec.text.input)([_TEXT])


def _forms(batch_size: int, *, precision: FastPrecision, engines: tuple[Engine, ...]) -> Iterator[Form]:
    """Yield the backends to try: eager backends before programs, full batches before small ones.

    With `bfloat16`, the function yields no float32 program. With `int8` (only for OpenVINO), the function also yields
    bfloat16 programs as a fallback, and float32 programs for CPUs without bfloat16.
    """
    for chosen in FAST_PRECISIONS[: FAST_PRECISIONS.index(precision) + 1]:
        for engine in engines:
            if chosen != "int8" if engine == "eager" else precision in ("int8", chosen):
                for size in sorted({batch_size, min(batch_size, _FEW)}, reverse=True):
                    yield Form(engine=engine, precision=chosen, max_batch_size=size)


def _compared(form: Form, given: Tensor, expected: Tensor, calibration: Calibration | None = None) -> Trial:
    """Return the accuracy of a backend, and the reason for a refusal; for int8, on held-out inputs."""
    cosine, error = smallest_cosine(given, expected), largest_error(given, expected)
    refused = ""
    if form.precision == "float32":
        if not error <= LARGEST_ERROR["float32"]:
            refused = f"the error is above {LARGEST_ERROR['float32']:.0e}"
    elif not cosine >= LEAST_COSINE[form.precision]:
        refused = f"the cosine is below {LEAST_COSINE[form.precision]}"
    elif calibration is not None:
        refused = calibration.refusal(given, expected)
    return Trial(form=form, cosine=cosine, error=error, refused=refused)
