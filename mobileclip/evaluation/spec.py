"""The choices of an evaluation as a value that flags are read from."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators
from tyro.conf import OmitArgPrefixes

from mobileclip import storage
from mobileclip.datasets.sources import RowOptions
from mobileclip.evaluation.suite import SuiteName
from mobileclip.hardware import AUTO, WidePrecision
from mobileclip.inputs import Interpolation
from mobileclip.strict import repeated, strict
from mobileclip.terminal.common import Rare


@attrs.frozen(kw_only=True)
class TaskOptions:
    """Options for opening the data of evaluation tasks.

    Args:
        allow_missing: evaluate on what is left where a shard is missing; see `Benchmark`.
        rows: how rows of `.jsonl` files and of tables are read.
    """

    allow_missing: bool = False
    rows: RowOptions = attrs.field(factory=RowOptions)


OWN = "own"
"""Stands for a model's own text tower."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class EvaluationSpec:
    """The choices of an evaluation: models, data sets or suites, and how they are encoded.

    Args:
        suite: `quick` for six small data sets, `imagenet` for it and its relatives, `retrieval` for Flickr30k and COCO,
            `aro` and `sugarcrepe` for compositional understanding, `full` for the 38 whose mean the papers report.
        datasets: these instead of a suite: keys such as vtab/pets, or places of data sets: folders of classes or of
            images with captions, JSON lines, shards, folders and URLs in the public layout; with `probe:` before
            one of classes, a linear probe on it.
        data: folder or URL that holds the data sets in folders such as wds_vtab-pets_test, or a pattern with {name}
            in it; without it they are read from the hub, where they are published.
        output: folder of every model's results.jsonl, and of embeddings; a run that was stopped goes on from there.
        device: where models compute, such as cuda:1, mps or cpu; `auto` is the best device there is.
        precision: precision of the weights.
        image_size: side of the images, in pixels, where not a model's own; open_clip's models have theirs.
        context_length: ids per text, where fewer than a model's own; see `mobileclip.encoders.load_model`.
        interpolation: filters that resize pictures, `bilinear`, `bicubic` or both: each model is evaluated with each,
            and its name ends with the filter; none for a model's own. Open_clip's models have theirs.
        text_model: text towers of the models' space that encode texts in place of a model's own, a file or a folder
            with one: each model is evaluated with each, and its name ends with the tower's; `own` stands for the
            model's own. None is that alone. Not of open_clip's models.
        batch_size: images encoded at once; by default as many as fit into memory.
        num_threads: threads that read images beside the model; by default one per core, eight at most.
        cache: whether embeddings are kept and found again, so that another run looks at no image that one has encoded;
            without, every run encodes anew.
        allow_missing: whether to go on where a shard is missing; the result says what is left out.
        trust: run exports for other targets than ONNX that another machine wrote, whose runtimes do not validate files:
            their authors could run anything on this machine.
        rows: how rows of `.jsonl` files and of tables among the data sets are read.
        stores: how long stores are waited for. Specs that differ in these alone are equal.

    Examples:
        >>> EvaluationSpec(datasets=("vtab/pets",)) == EvaluationSpec(datasets=("vtab/pets",), suite="quick")
        True
    """

    suite: SuiteName = "quick"
    datasets: tuple[str, ...] = ()
    data: str | None = None
    output: Path = Path("outputs/evaluation")
    device: str = AUTO
    precision: WidePrecision = "float32"
    image_size: Rare[int | None] = None
    context_length: Rare[int | None] = None
    interpolation: Rare[tuple[Interpolation, ...]] = attrs.field(default=())
    text_model: Rare[tuple[str, ...]] = attrs.field(default=())
    batch_size: int | None = attrs.field(default=None, validator=validators.optional(validators.ge(1)))
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.ge(1)))
    cache: Rare[bool] = True
    allow_missing: Rare[bool] = False
    trust: Rare[bool] = False
    rows: Rare[OmitArgPrefixes[RowOptions]] = attrs.field(factory=RowOptions)
    stores: Rare[storage.StoreLimits] = attrs.field(factory=storage.StoreLimits, eq=False)

    @interpolation.validator
    @text_model.validator
    def _check_repeated(self, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
        if twice := repeated(value):
            raise ValueError(f"{attribute.name} names {twice[0]!r} twice; name it once")

    @property
    def task_options(self) -> TaskOptions:
        """How the data of tasks are opened."""
        return TaskOptions(allow_missing=self.allow_missing, rows=self.rows)
