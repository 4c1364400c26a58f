"""JSON of every spec, every field wrong in turn: refused with a message that names it, or read back equal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import count
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from mobileclip.data import AugmentationSpec, ImageLimits, ReinforcedPipelineSpec, ReinforcementCard, StreamPosition
from mobileclip.data.augmentation.range_augment import RangeAugmentSpec
from mobileclip.data.joining.matching import MatchCounts
from mobileclip.data.joining.records import AboutShard
from mobileclip.data.joining.report import JoinedShard
from mobileclip.data.joining.spec import JoinSpec
from mobileclip.data.shards.card import CaptionerEntry, TeacherEntry
from mobileclip.data.sources import ClassFolderSource, FolderSource, JsonLinesSource, ShardSource
from mobileclip.encoders import AttentionSpec
from mobileclip.encoders.mci import RepMixerSpec
from mobileclip.engines import Lease, Retries, SetAside, Status
from mobileclip.engines.journal import UnderWay
from mobileclip.evaluation.runner import EvaluationSpec
from mobileclip.export.contract import FeatureMap, ImageContract, TextContract, TowerFile
from mobileclip.export.spec import ExportSpec
from mobileclip.export.verification.parity import Gate, Ranking, Report, TowerParity
from mobileclip.inputs import ImageInput, TextInput, TokenizerFile
from mobileclip.losses import (
    ContrastiveLossSpec,
    ReinforcedLossSpec,
    ReinforcedSigmoidLossSpec,
    SigmoidLossSpec,
)
from mobileclip.reinforce.captioners.coca import CocaCaptioner
from mobileclip.reinforce.manifest import ShardEntry
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers.checkpoint import CheckpointTeacher
from mobileclip.reinforce.teachers.open_clip import OpenClipTeacher
from mobileclip.serialization import from_json, to_json
from mobileclip.training.finetuning.layer_rates import LayerDecayAdamWSpec
from mobileclip.training.finetuning.lora import LoraSpec
from mobileclip.training.finetuning.spec import FinetuningSpec
from mobileclip.training.optimizer import AdamWSpec
from mobileclip.training.run import RunSpec
from mobileclip.training.schedule import ConstantCosineSchedule, CosineSchedule
from mobileclip.training.spec import TrainingSpec
from tests.encoders.small import MCT, SMALL, STAGES, TEXT, VIT
from tests.trials.harness import Case, Outcome

WRONG: dict[Any, tuple[str, ...]] = {
    int: ('"2"', "1.5", "true", "[1]", "{}", "NaN", "1e3", "9" * 400, str(2**70), '"\\u0000"'),
    float: ('"0.5"', "true", "NaN", "Infinity", "-Infinity", "1e999", "[0.5]", "9" * 400, '"nan"', "{}"),
    str: ("1", "true", "[]", "{}", "1.5", '["a"]'),
    bool: ('"true"', "1", "0", "[]", "null", "0.0"),
    Path: ("1", "[]", "{}", "true"),
}
"""JSON that is none of these; some of each are tried in turn."""
EITHER: dict[Any, tuple[str, ...]] = {
    int: ("0", "-1", "1", str(2**40), str(2**63)),
    float: ("0", "-1.0", "1e-300", "1e300", "1", "-0.0"),
    str: ('""', '"\\u001b[31m\\n\\t"', '"\\ud800"', f'"{"x" * 100_000}"'),
}
"""JSON that may be refused or not."""


@cache
def specs() -> list[Any]:
    """One spec of every class that is read from JSON."""
    image, text = ImageInput(size=64), TextInput(context_length=12, vocab_size=600)
    tokenizer = TokenizerFile(sha256="0" * 64, start_id=1, end_id=2)
    loss = ReinforcedLossSpec(teacher_dims=(4, 6), teacher_logit_scales=(20.0, 30.0))
    schedule = CosineSchedule(total_steps=3000)
    training = TrainingSpec(loss=loss, schedule=schedule, range_augment=RangeAugmentSpec())
    data = ReinforcedPipelineSpec(shards=("a.tar",), batch_size=8, image=SMALL.image.input, text=SMALL.text.input)
    teacher = TeacherEntry(name="a", weights_sha256="0", dim=4, logit_scale=20.0, image=image, spec={"kind": "x"})
    captioner = CaptionerEntry(name="c", weights_sha256="0", caption_set="syn", seed=1, spec={})
    augmentation = AugmentationSpec(size=64)
    card = ReinforcementCard(teachers=(teacher,), captioners=(captioner,), augmentation=augmentation, layout="npz")
    parity = TowerParity(
        tower="image", count=2, cosine_minimum=0.5, cosine_median=0.5, length_error=0.0, num_not_finite=0, num_zero=0,
        spread=0.1, reference_spread=0.1,
    )  # fmt: skip
    ranking = Ranking(kind="captions", num_queries=4, agreement=1.0)
    gate = Gate(name="cosine", value=0.5, bound="at least 0.9", passed=True)
    tower = TowerFile(
        tower="image", file="a.onnx", input_name="x", input_dtype="float32", input_shape=(None, 3), output_name="y",
        output_shape=(None, 4), compute="float32", features=(FeatureMap(stage=0, shape=(None, 8, 4, 4)),),
    )  # fmt: skip
    under_way = UnderWay(worker="a", unit="b", seconds=1.0)
    return [
        image, text, tokenizer, attrs.evolve(text, tokenizer=tokenizer), *tower.features,
        SMALL, VIT, TEXT, MCT, STAGES[2], SMALL.image, RepMixerSpec(), AttentionSpec(), loss, schedule,
        training, data, card, teacher, captioner, augmentation, parity, ranking, gate, tower, RangeAugmentSpec(),
        Report(
            data="d", runtime="r", image_names=("a",), captions=("b",), skipped={"s": 1}, towers=(parity,),
            ranking=ranking, gates=(gate,),
        ),
        RunSpec(model=SMALL, data=data, training=training), StreamPosition(num_readers=2, places=((1, 0, 0, 3),)),
        ConstantCosineSchedule(total_steps=3000, constant_steps=2500), AdamWSpec(), LayerDecayAdamWSpec(), LoraSpec(),
        FinetuningSpec(lora=LoraSpec()), ContrastiveLossSpec(), SigmoidLossSpec(),
        ReinforcedSigmoidLossSpec(teacher_logit_biases=(None, -10.0)), CocaCaptioner(), OpenClipTeacher(),
        CheckpointTeacher(checkpoint="a.pt"),
        ShardEntry(shard="a", fingerprint="b", num_samples=1, num_bytes=2, skipped={}),
        Retries(), SetAside(unit="a", reason="b", tries=3), Lease(holder="a", identity="b", since="c"), under_way,
        Status(
            state="running", began="a", written="b", num_units=3, num_done_before=1, num_done=1, num_failed=0,
            num_set_aside=0, units_per_hour=1.0, seconds_left=2.0, under_way=(under_way,), doing="a", then=("b",),
        ),
        ReinforcementSpec(
            source=FolderSource(path="p"), output="o", teachers=(CheckpointTeacher(checkpoint="a"),),
            captioner=CocaCaptioner(), augmentation=augmentation,
        ),
        FolderSource(path="p"), ClassFolderSource(path="p"), JsonLinesSource(path="p"), ShardSource(shards=("p",)),
        JoinSpec(reinforced="a", images="b", output="c"),
        JoinedShard(
            source="a", images="b", matches="c", captions="", choices="c", num_bytes=1, num_joined=1, num_captions=1,
            num_set_captions=0,
            likeness={"stored": 1}, other=("a",), reach=0.5, left_out=(("a", "b"),),
        ),
        AboutShard(shard="a", by="key", fingerprint="x"), MatchCounts(),
        ImageLimits(), EvaluationSpec(), ExportSpec(out=Path("out")), ImageContract(input=image, preprocess="host"),
        TextContract(input=text, start_id=1, end_id=2, tokenizer="t.json"),
    ]  # fmt: skip


def with_raw(value: Any, path: tuple[str, ...], raw: str) -> str:
    """Return JSON with a text in the place of a field, whatever it is."""
    marker = "@here@"
    changed = json.loads(to_json(value))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = marker
    return json.dumps(changed).replace(f'"{marker}"', raw)


def must_refuse(text: str, cls: type, name: str) -> Outcome:
    """Read JSON that is wrong: the message names what is."""
    try:
        value = from_json(text, cls)
    except ValueError as error:
        message = str(error)
        assert name in message or "not JSON" in message, message
        assert len(message) <= 2000, len(message)
        return "refused"
    raise AssertionError(f"it was read as {value!r:.300}")


def may_refuse(text: str, cls: type, name: str) -> Outcome:
    """Read JSON that may be wrong: it is refused, or comes back as it is."""
    try:
        value = from_json(text, cls)
    except ValueError as error:
        message = str(error)
        assert 0 < len(message) <= 2000, name
        return "refused"
    assert from_json(to_json(value), cls) == value
    return "accepted"


def scalar(annotation: Any) -> tuple[Any, bool]:
    """Return the scalar type that an annotation is of, if any, and whether it may be null."""
    if get_origin(annotation) in (Union, UnionType):
        rest = [each for each in get_args(annotation) if each is not NoneType]
        return (scalar(rest[0])[0] if len(rest) == 1 else None), True
    return (Literal if get_origin(annotation) is Literal else annotation), False


def of_field(annotation: Any, turn: Iterator[int]) -> Iterator[tuple[str, Callable[..., Outcome]]]:
    """Yield JSON for a field of such an annotation, and what has to become of it."""
    kind, optional = scalar(annotation)
    if kind is Literal:
        wrong: tuple[str, ...] = ('"nonsense"', "1", "true", "[]", '""')
    elif kind in WRONG:
        wrong = WRONG[kind]
    elif get_origin(kind) is tuple:
        wrong = ('"ab"', "{}", "3", '[[[[["deep"]]]]]', "[{}]", "[null, null, null, null, null]", "true")
    elif get_origin(kind) is Mapping:
        wrong = ("3", "[]", '"a"', "true", "[[1, 2]]")
    else:
        wrong = ("3", "[]", '"a"', "true", '{"unknown": 1}', "[[]]")
    number = next(turn)
    yield wrong[number % len(wrong)], must_refuse
    if not optional and kind is not bool and number % 6 == 0:
        yield "null", must_refuse
    if kind in EITHER and number % 4 == 1:
        yield EITHER[kind][number % len(EITHER[kind])], may_refuse


def of_spec(value: Any, turn: Iterator[int]) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """Yield what is tried on a class of specs as a whole."""
    cls = type(value)
    text = to_json(value)
    yield "as it is", partial(may_refuse, text, cls, "")
    more = text[:-1] + (", " if text != "{}" else "") + '"nonsense": 1}'
    yield "unknown key", partial(must_refuse, more, cls, "nonsense")
    wholes = ("[]", "3", '"text"', "null", "true", f"[{text}]", text[:-1], text + "x", "[" * 100_000, '{"a":' * 50_000)
    yield "another value", partial(must_refuse, wholes[next(turn) % len(wholes)], cls, cls.__name__)
    fields = [field for field in attrs.fields(cls) if field.init]
    if fields:
        first = json.dumps(json.loads(text)[fields[0].name])
        yield "key twice", partial(must_refuse, f'{text[:-1]}, "{fields[0].name}": {first}}}', cls, fields[0].name)
    for field in fields:
        if field.default is attrs.NOTHING and next(turn) % 2:
            less = {key: item for key, item in json.loads(text).items() if key != field.name}
            yield f"{field.name} is missing", partial(must_refuse, json.dumps(less), cls, field.name)


def cases() -> Iterator[Case]:
    """Yield every class and field with something wrong in it."""
    turn = count()
    for place, value in enumerate(specs()):
        cls = type(value)
        label = f"{place} {cls.__name__}"
        for name, attempt in of_spec(value, turn):
            yield _case(f"{label}: {name}", attempt)
        hints = get_type_hints(cls)
        for field in attrs.fields(cls):
            for raw, then in of_field(hints[field.name], turn):
                text = with_raw(value, (field.name,), raw)
                shown = raw if len(raw) < 40 else f"{raw[:20]}... of {len(raw)}"
                yield _case(f"{label}: {field.name} = {shown}", partial(then, text, cls, field.name))


def _case(name: str, attempt: Callable[[], Outcome]) -> Case:
    return Case(name=name, attempt=lambda _: attempt())
