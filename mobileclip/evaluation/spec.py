"""The options of an evaluation, from which the command-line flags are generated."""

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
    """Options for opening the data sets of evaluation tasks.

    Args:
        allow_missing: whether to evaluate on the remaining images if a shard is missing; see `Benchmark`.
        rows: options for reading rows of `.jsonl` files and tables.
    """

    allow_missing: bool = False
    rows: RowOptions = attrs.field(factory=RowOptions)


OWN = "own"
"""Value of `text_model` for a model's own text tower."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class EvaluationSpec:
    """The options of an evaluation: the data sets, the encoding and the output.

    Args:
        suite: `quick` for six small data sets, `imagenet` for ImageNet and its variants, `retrieval` for Flickr30k and
            COCO, `multilingual` for captions in many languages, `aro` and `sugarcrepe` for compositional understanding,
            `full` for the 38 data sets of the average in the papers.
        datasets: data sets to evaluate instead of a suite: keys such as vtab/pets; paths of JSON lines, shards, folders
            of classes or folders of captioned images; or folders or URLs in CLIP_benchmark's layout. The prefix
            `probe:` before a data set with classes runs a linear probe.
        data: folder or URL that holds the data sets in folders such as wds_vtab-pets_test, or a pattern with {name}; by
            default, the evaluation reads the data sets from the Hugging Face hub.
        output: folder for the results.jsonl file of each model and for the embeddings; a stopped run resumes from the
            same folder.
        device: device that runs the models, such as cuda:1, mps or cpu; `auto` selects the best available device.
        precision: dtype of the weights.
        image_size: side of the images in pixels; by default each model's own size. Not supported for open_clip models.
        context_length: number of token ids per text, at most the model's own context length; see
            `mobileclip.encoders.load_model`.
        interpolation: filters for resizing images, `bilinear`, `bicubic` or both; by default each model's own filter.
            The evaluation runs each model with each filter, and appends the filter to the name of the model. Not
            supported for open_clip models.
        text_model: text towers that replace a model's own tower, each a file or a folder with a file. Each tower must
            share the embedding space of the models. The evaluation runs each model with each tower, and appends the
            name of the tower to the name of the model. `own` selects the model's own tower, as by default. Not
            supported for open_clip models.
        batch_size: number of images per batch; by default as many as fit into memory.
        num_threads: number of threads that read images while the model runs; by default one per core, at most eight.
        cache: whether to cache embeddings, so that a later run does not encode the same images again.
        allow_missing: whether to continue if a shard is missing; the result counts the skipped images.
        trust: whether to run exports that come from another machine and have a target other than ONNX. The runtimes of
            these targets do not validate files, so the author of an export could run any code on this machine.
        rows: options for reading rows of `.jsonl` files and tables of the data sets.
        stores: timeouts of remote stores. Two specs that differ only in `stores` are equal.

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
            raise ValueError(f"{attribute.name} contains {twice[0]!r} twice; remove the duplicate")

    @property
    def task_options(self) -> TaskOptions:
        """Options for opening the data of the tasks."""
        return TaskOptions(allow_missing=self.allow_missing, rows=self.rows)
