"""What each form of a model in this process loses on labelled pictures: bfloat16, OpenVINO, int8 untuned and tuned.

Command:   python -m benchmarks forms --icons outputs/icons --tuned icons_int8.safetensors     (needs the extra `test`)
           python -m benchmarks forms --model s2.pt --data my_classes/
Hardware:  any CPU; int8 of a processor without VNNI or AMX is another arithmetic
Time:      a minute a form for `icons`
Result:    a table, a row for each data set and form: float32's accuracy, the form's difference with its 95 % interval,
           picture by picture, and how many pictures the form alone has right or wrong

Accuracy is that of `mobileclip eval`. Forms are those of `mobileclip.optimize`, each whether it passes the acceptance
checks or not; ranges of int8 untuned are found on the package's pictures. `--icons` is what `python -m examples.icons`
has made: its held-out splits. Exports are measured by `python -m benchmarks exports` on the same data sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import attrs
from attrs import validators
from torch import nn

import mobileclip
from benchmarks.harness import Bench, Case, Row, Value, require
from examples.icons.splits import TITLES
from examples.learning_efficiency.finetune import PROMPTS
from examples.quickstart.emoji.benchmark import write_benchmarks
from examples.quickstart.emoji.on_disk import load_finished
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import candidate_of
from mobileclip.evaluation.report.values import ModelResults
from mobileclip.evaluation.report.verdicts import compare
from mobileclip.evaluation.runner import evaluate_models
from mobileclip.evaluation.spec import EvaluationSpec
from mobileclip.evaluation.summary import summarize
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference.forms import ReadyDualEncoder
from mobileclip.inference.optimization.int8 import Calibration
from mobileclip.inference.optimization.towers import Engine, Form, OptimizedTower
from mobileclip.inputs import ImageInput, TextInput

FormName = Literal[
    "float32, OpenVINO", "bfloat16, eager", "bfloat16, OpenVINO", "int8 untuned, OpenVINO", "int8 tuned, OpenVINO"
]
_FORMS: dict[FormName, tuple[Engine, FastPrecision]] = {
    "float32, OpenVINO": ("openvino", "float32"),
    "bfloat16, eager": ("eager", "bfloat16"),
    "bfloat16, OpenVINO": ("openvino", "bfloat16"),
    "int8 untuned, OpenVINO": ("openvino", "int8"),
    "int8 tuned, OpenVINO": ("openvino", "int8"),
}
_TUNED = "int8 tuned, OpenVINO"


@attrs.frozen(kw_only=True)
class FormsBenchSpec(Bench):
    """Which forms of which model, on what.

    Args:
        model: a name or a file, in float32.
        tuned: what `mobileclip quantize` made of it; without it, that form is left out.
        forms: those that are compared with float32.
        data: data sets as `mobileclip eval` takes them.
        icons: folder of `python -m examples.icons`, whose held-out splits are data sets too.
        folder: where evaluations go.
    """

    model: str = "icons"
    tuned: Path | None = None
    forms: tuple[FormName, ...] = tuple(_FORMS)
    data: tuple[str, ...] = ()
    icons: Path | None = None
    folder: Path = attrs.field(default=Path("outputs/forms"), validator=validators.instance_of(Path))

    smallest: ClassVar[Mapping[str, object]] = {"forms": ("bfloat16, eager",)}
    selects: ClassVar[frozenset[str]] = frozenset(("forms", "data", "icons", "tuned"))

    def cases(self) -> Iterator[Case]:
        """Yield every form on every data set.

        Raises:
            ValueError: if there is no data set.
        """
        require("openvino", "nncf")
        data = [*self.data, *_icon_sets(self)]
        if not data:
            raise ValueError("there is nothing to measure on; give --data, or --icons FOLDER")
        made: dict[str, DualEncoder] = {}
        known: dict[str, ModelResults] = {}
        for place, form in product(data, self.forms):
            if form != _TUNED or self.tuned is not None:
                labels = {"data": Path(place).name, "form": form}
                yield Case(labels=labels, measure=partial(measure, self, place, form, made, known))


def _icon_sets(spec: FormsBenchSpec) -> list[str]:
    if spec.icons is None:
        return []
    folder = spec.folder / "icons"
    write_benchmarks(load_finished(spec.icons, TITLES), folder, templates=PROMPTS, name="icons", captions=False)
    return sorted(map(str, folder.glob("wds_*")))


def measure(
    spec: FormsBenchSpec,
    place: str,
    name: FormName,
    made: dict[str, DualEncoder],
    known: dict[str, ModelResults],
) -> list[Row]:
    """Return what a form loses on a data set.

    Args:
        spec: the choices.
        place: of the data set.
        name: of the form.
        made: forms, for the data sets before.
        known: what float32 gives, by data set.
    """
    model = mobileclip.load(spec.model).model
    if name not in made:
        source = mobileclip.load(str(spec.tuned)).model if name == _TUNED else model
        made[name] = in_form(source, *_FORMS[name])
    if place not in known:
        known[place] = evaluated(spec, model, "float32, eager", place)
    comparison = compare(evaluated(spec, made[name], name, place), known[place])
    assert comparison is not None, "both were evaluated on the same data set"
    (row,) = comparison.rows
    assert row.interval is not None, "the same pictures were asked about"
    difference = Value(
        number=100 * row.difference, unit="points", low=100 * row.interval.low, high=100 * row.interval.high
    )
    values = {"float32": Value(number=100 * row.reference_value, unit="%"), "difference": difference}
    counts = {"pictures": row.num_images, "right alone": row.gained, "wrong alone": row.lost}
    return [Row(values=values | {name: Value(number=count) for name, count in counts.items() if count is not None})]


def evaluated(spec: FormsBenchSpec, model: DualEncoder, name: str, place: str) -> ModelResults:
    """Return what a form gives on a data set; encoded anew, since forms of one model have its weights.

    Raises:
        ValueError: if it cannot be evaluated.
    """
    wanted = EvaluationSpec(datasets=(place,), output=spec.folder / "evaluation", device="cpu", cache=False)
    run = evaluate_models([candidate_of(model, name=name)], wanted)
    if run.failures:
        raise ValueError("; ".join(failure.message for failure in run.failures))
    return summarize(run)[0]


def in_form(model: DualEncoder, engine: Engine, precision: FastPrecision) -> ReadyDualEncoder:
    """Return a model in one form, input by input in programs, so that nothing is computed beside them.

    Args:
        model: in float32, folded.
        engine: what computes.
        precision: what in.
    """
    form = Form(engine=engine, precision=precision, most=32 if engine == "eager" else 1)

    def made(tower: nn.Module, contract: ImageInput | TextInput) -> OptimizedTower:
        found, calibration = OptimizedTower(tower, form=form), Calibration.of_package(contract)
        found.compile_for(calibration.ranges, int8=found.int8_model(calibration) if precision == "int8" else None)
        return found

    ready = ReadyDualEncoder(
        made(model.image_encoder, model.spec.image.input),
        made(model.text_encoder, model.spec.text.input),
        max_logit_scale=model.max_logit_scale,
    )
    ready.logit_scale = model.logit_scale
    return ready.eval()
