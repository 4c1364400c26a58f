"""One spec of every class that JSON holds, and specs whose fields, one after another, are off their defaults.

A new class is found by itself. Where no value of it can be thought of, or none but the default of a field, that is an
error, and the value belongs into `GIVEN` or `CHANGES`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from itertools import islice, zip_longest
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

import mobileclip
from mobileclip.collections import Condition
from mobileclip.data import AugmentationSpec, ReinforcedExampleSpec, ReinforcedPipelineSpec, StreamPosition
from mobileclip.data.loading.pipeline import PipelineSpec
from mobileclip.datasets import LabelledPipelineSpec
from mobileclip.datasets.curation.filtering import FilterSpec
from mobileclip.encoders import ClassifierSpec, CoCaSpec, DualEncoderSpec, MCiSpec, ViTSpec
from mobileclip.export import ExportSpec, TowerFile
from mobileclip.inference.known import ImageReference, KnownOutput
from mobileclip.inputs import ImageInput, TokenizerFile
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.recipes.distilling import DistilSpec
from mobileclip.registry import Registry
from mobileclip.reinforce.captioners import CaptionSet, CheckpointCaptioner
from mobileclip.strict import NOT_IN_JSON, strict
from mobileclip.training import ConstantCosineSchedule, CosineSchedule, CrossEntropySpec, RunSpec, TrainingSpec
from mobileclip.training.finetuning import LabelledContrastiveSpec
from studies.learning_efficiency.equal import ClassLossSpec
from tests.encoders.small import COCA, COCA_VIT, IMAGE, SMALL, SMALL_MCT, SMALL_VIT, VIT

_MOST_TRIES = 300
_ENDED = object()
_SCALARS: dict[type, tuple[Any, ...]] = {
    bool: (True, False),
    int: (1, 2, 3, 0, 8, 16, 64, 77),
    float: (0.5, 1.0, 0.25, 2.0, 20.0, 0.0),
    str: ("a", "0" * 64, "b", "a {}", "white", "width", "path", "syn_text_a", "syn_text", "00000001.parquet"),
    Path: (Path("a"), Path("b/c")),
}


@cache
def modules() -> tuple[ModuleType, ...]:
    """Return every module of the library."""
    names = [found.name for found in pkgutil.walk_packages(mobileclip.__path__, f"{mobileclip.__name__}.")]
    return tuple(importlib.import_module(name) for name in sorted(names) if not name.endswith("__main__"))


@cache
def spec_classes() -> tuple[type, ...]:
    """Return every class that JSON holds: strict, registered, read by `from_json` somewhere, or called a spec."""
    return tuple(cls for cls in _classes() if attrs.has(cls) and not inspect.isabstract(cls))


def families(cls: type) -> list[type]:
    """Return what fields are annotated with that may hold a registered class; JSON says there which one it is."""
    return [base for base in _bases() if issubclass(cls, base)] if cls in _registered() else []


@cache
def _registered() -> set[type]:
    registries = [registry for module in modules() for registry in _registries(module)]
    return {value for registry in registries for value in registry.values() if inspect.isclass(value)}


@cache
def _bases() -> list[type]:
    hints = (hint for one in spec_classes() for hint in get_type_hints(one).values())
    found = {part for hint in hints for part in _parts(hint) if inspect.isabstract(part)}
    return sorted(found, key=lambda base: base.__name__)


@cache
def _classes() -> tuple[type, ...]:
    """Return the classes of specs, and those that their fields are annotated with."""
    waiting, found = [cls for module in modules() for cls in _of_module(module)], set[type]()
    while waiting:
        if (cls := waiting.pop()) not in found:
            found.add(cls)
            hints = get_type_hints(cls).values() if attrs.has(cls) else ()
            waiting += [part for hint in hints for part in _parts(hint)]
    return tuple(sorted(found, key=lambda cls: (cls.__module__, cls.__name__)))


def _registries(module: ModuleType) -> list[Registry[Any]]:
    return [thing for thing in vars(module).values() if isinstance(thing, Registry)]


def _parts(hint: Any) -> Iterator[type]:
    """Yield the classes that an annotation is made of."""
    if inspect.isclass(hint) and not get_args(hint):
        yield hint
    for each in get_args(hint):
        yield from _parts(each)


def _of_module(module: ModuleType) -> Iterator[type]:
    things = vars(module)
    for registry in _registries(module):
        yield from (value for value in registry.values() if inspect.isclass(value) and attrs.has(value))
    for thing in filter(inspect.isclass, things.values()):
        is_own = thing.__module__ == module.__name__ and attrs.has(thing)
        if is_own and (thing.__name__.endswith("Spec") or _is_strict(thing)):
            yield thing
    source = inspect.getsource(module)
    for node in ast.walk(ast.parse(source)) if "from_json(" in source else ():
        match node:
            case ast.Call(ast.Name("from_json"), [_, ast.Name(name)]) if inspect.isclass(things.get(name)):
                yield things[name]


def _is_strict(cls: type) -> bool:
    fields = attrs.fields(cls)
    return any(strict(cls, [field])[0].validator is field.validator for field in fields)


@cache
def made(cls: type) -> tuple[Any, ...]:
    """Return specs of a class: those of `GIVEN`, or the first that it takes of what its annotations allow.

    Raises:
        ValueError: if it takes none.
    """
    if cls in GIVEN:
        return GIVEN[cls]()
    hints = get_type_hints(cls)
    needed = [field for field in attrs.fields(cls) if field.init and field.default is attrs.NOTHING]
    choices = {field.alias: next(values(hints[field.name]), None) for field in needed}
    for _ in range(len(needed) + 1):
        spec = _tried(cls, choices)
        if not isinstance(spec, str):
            return (spec,)
        for field in [field for field in needed if f"'{field.name}'" in spec][:1]:
            choices[field.alias] = _accepted(cls, field, hints[field.name])
    raise ValueError(f"no {cls.__name__} can be made; give one in GIVEN of {__name__}")


def _tried(cls: Callable[..., Any], choices: dict[str, Any]) -> Any:
    """Return a spec, or why there is none."""
    try:
        return cls(**choices)
    except (TypeError, ValueError) as error:
        return str(error)


def _accepted(cls: type, field: attrs.Attribute[Any], hint: Any) -> Any:
    for value in islice(values(hint), _MOST_TRIES):
        with suppress(TypeError, ValueError):
            if field.validator is not None:
                field.validator(object.__new__(cls), field, value)
            return value
    raise ValueError(f"no value of {field.name} of {cls.__name__} was found; give one in GIVEN of {__name__}")


def changed(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield, of every field that JSON holds, its name and a spec that has another value there than the default.

    Raises:
        ValueError: if there is none of a field.
    """
    hints = get_type_hints(cls)
    for field in attrs.fields(cls):
        is_one_value = get_origin(hints[field.name]) is Literal and len(get_args(hints[field.name])) == 1
        if not field.init or is_one_value or NOT_IN_JSON.items() <= field.metadata.items():
            continue
        others = [other for spec in made(cls) for other in islice(_changed(spec, field, hints[field.name]), 3)]
        yield from ((field.name, other) for other in others)
        if not others:
            raise ValueError(f"{field.name} of {cls.__name__} takes its default alone; give a spec in GIVEN")


def _changed(spec: Any, field: attrs.Attribute[Any], hint: Any) -> Iterator[Any]:
    usual = _default(spec, field)
    if getattr(spec, field.name) != usual:
        yield spec
    for value in islice(values(hint), _MOST_TRIES):
        other = _tried(partial(attrs.evolve, spec), {field.alias: value})
        if not isinstance(other, str) and (found := getattr(other, field.name)) != usual and type(found) is type(value):
            yield other


def _default(spec: Any, field: attrs.Attribute[Any]) -> Any:
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
        return field.default.factory(spec) if field.default.takes_self else field.default.factory()
    return field.default


def values(hint: Any) -> Iterator[Any]:
    """Yield values that an annotation allows, each of them another."""
    if hint in _SCALARS:
        yield from _SCALARS[hint]
    elif hint is NoneType:
        yield None
    elif hint is Any:
        yield from ("a", [1, {"b": None}])
    elif get_origin(hint) is not None:
        yield from _of_several(get_origin(hint), get_args(hint))
    elif inspect.isclass(hint):
        yield from _of_class(hint)


def _of_several(origin: Any, arguments: tuple[Any, ...]) -> Iterator[Any]:
    if origin is Literal:
        yield from arguments
    elif origin in (Union, UnionType):
        # One of each kind in turn.
        some = zip_longest(*map(values, arguments), fillvalue=_ENDED)
        yield from (value for each in some for value in each if value is not _ENDED)
    elif origin is tuple and arguments[1:] == (...,):
        yield from _tuples(arguments[0])
    elif origin is tuple:
        yield from zip(*map(_repeated, arguments), strict=False)
    elif origin in (Mapping, dict):
        yield from ({"a": value} for value in islice(values(arguments[1]), 4))
        yield {}


def _tuples(kind: Any) -> Iterator[tuple[Any, ...]]:
    some = tuple(islice(values(kind), 4))
    yield from ((value,) for value in some)
    yield from (some[:2], some[:2][::-1], some[1:2] * 2, some[:3], ())


def _repeated(kind: Any) -> Iterable[Any]:
    some = tuple(islice(values(kind), 8))
    return [some[place % len(some)] for place in range(16)]


def _of_class(cls: type) -> Iterator[Any]:
    # A protocol is met by whatever is handed in; the library's own are those of the runs above.
    above = () if getattr(cls, "_is_protocol", False) else [one for one in spec_classes() if issubclass(one, cls)]
    members = [cls] if cls in spec_classes() else above
    yield from (spec for member in members for spec in made(member))
    yield from (other for member in members for _, other in changed(member))


def _pipelines(cls: type, **choices: Any) -> Callable[[], tuple[Any, ...]]:
    whole = cls(shards=("a.tar",), batch_size=8, image=IMAGE.input, **choices)
    return lambda: (whole, attrs.evolve(whole, sampling="endless"))


def _runs() -> tuple[Any, ...]:
    training = TrainingSpec(loss=ReinforcedLossSpec(), schedule=CosineSchedule(total_steps=3000))
    data = attrs.evolve(made(ReinforcedPipelineSpec)[0], text=SMALL.text.input)
    of_texts = (data, attrs.evolve(data, teacher_columns=(4, 6)))
    (classifier,), labelled = made(ClassifierSpec), made(LabelledPipelineSpec)[0]
    labelled = attrs.evolve(labelled, num_classes=2, class_names=classifier.class_names)
    of_classes = RunSpec(model=classifier, data=labelled, training=attrs.evolve(training, loss=CrossEntropySpec()))
    return (*(RunSpec(model=SMALL, data=one, training=training) for one in of_texts), of_classes)


# What no annotation says: which values go together.
def _losses(cls: type[ReinforcedLossSpec]) -> Callable[[], tuple[Any, ...]]:
    return lambda: (cls(), cls(initial_logit_bias=-10.0, teacher_logit_biases=(-9.0, None)))


_PICTURE = ImageReference(name="cat.jpg", sha256="0" * 64)

_INPUT = {"input_name": "ids", "input_dtype": "int64", "input_shape": (1, 77)}
_OUTPUT = {"output_name": "text_embedding", "output_shape": (1, 32), "compute": "float32"}
_TEXT_FILE = TowerFile(tower="text", file="text.onnx", **_INPUT, **_OUTPUT)
GIVEN: dict[type, Callable[[], tuple[Any, ...]]] = {
    ImageInput: lambda: (ImageInput(size=64),),
    TokenizerFile: lambda: (TokenizerFile(sha256="0" * 64, start_id=1, end_id=2),),
    AugmentationSpec: lambda: (AugmentationSpec(size=64), AugmentationSpec(size=64, operations=("Rotate",))),
    CoCaSpec: lambda: (COCA, COCA_VIT),
    DualEncoderSpec: lambda: (SMALL, SMALL_MCT, SMALL_VIT),
    MCiSpec: lambda: (IMAGE, IMAGE.without_projection()),
    ViTSpec: lambda: (VIT, attrs.evolve(VIT, stem="patch"), attrs.evolve(VIT, projection=False, embedding_dim=32)),
    ClassifierSpec: lambda: (ClassifierSpec(image=IMAGE, num_classes=2, class_names=("a", "b")),),
    CaptionSet: lambda: (CaptionSet(name="syn_text", captioner=CheckpointCaptioner(checkpoint="a.pt")),),
    CosineSchedule: lambda: (CosineSchedule(total_steps=3000),),
    DistilSpec: lambda: (DistilSpec(shares=("de=2",)),),
    ConstantCosineSchedule: lambda: (ConstantCosineSchedule(total_steps=3000, constant_steps=2500),),
    ReinforcedExampleSpec: lambda: tuple(
        ReinforcedExampleSpec(image=IMAGE.input, teacher_columns=columns) for columns in (None, (4, 6))
    ),
    ReinforcedPipelineSpec: lambda: tuple(
        made for columns in (None, (4, 6)) for made in _pipelines(ReinforcedPipelineSpec, teacher_columns=columns)()
    ),
    LabelledPipelineSpec: _pipelines(LabelledPipelineSpec, num_classes=2),
    PipelineSpec: _pipelines(PipelineSpec),
    RunSpec: _runs,
    TowerFile: lambda: (_TEXT_FILE, attrs.evolve(_TEXT_FILE, lengths=(8, 77))),
    StreamPosition: lambda: (StreamPosition(num_readers=2, places=((1, 0, 0, 3),)),),
    FilterSpec: lambda: tuple(
        FilterSpec(scores=Path("a"), output=Path("b"), **{way: 0.5}) for way in ("share", "threshold")
    ),
    KnownOutput: lambda: (
        KnownOutput(model="a", source="b", texts=("a cat",), first=(0.5, 0.25), tolerance=0.1),
        KnownOutput(model="a", source="b", image=_PICTURE, texts=("a", "b"), probabilities=(0.9, 0.1), factor=2.0),
    ),
    ImageReference: lambda: (_PICTURE,),
    ReinforcedLossSpec: _losses(ReinforcedLossSpec),
    LabelledContrastiveSpec: _losses(LabelledContrastiveSpec),
    ClassLossSpec: _losses(ClassLossSpec),
    Condition: lambda: (Condition(column="width", comparison=">", value=1000.0),),
    ExportSpec: lambda: tuple(ExportSpec(output=Path("a"), target=target) for target in ("onnx", "executorch")),
}
