"""The open families of a run: model specs and data specs, with their registries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from torch import nn

from mobileclip.data import Batch, BatchSource, ColumnPipelineSpec, ReinforcedPipelineSpec, TextPipelineSpec
from mobileclip.datasets import LabelledPipelineSpec
from mobileclip.encoders import ClassifierSpec, CoCaSpec, DualEncoderSpec
from mobileclip.registry import Registry
from mobileclip.serialization import open_family


@runtime_checkable
class StudentSpec(Protocol):
    """The interface of a model's spec in a run, an attrs class; `image.input` and `text.input` are checked.

    Others than `DualEncoderSpec`, `ClassifierSpec`, `CoCaSpec` and text towers are registered in `students`, or stand
    at the top of a module that is imported.

    Examples:
        >>> isinstance(mobileclip.specs.mobileclip_s0(), StudentSpec)
        True
    """

    def build(self) -> nn.Module:
        """Return a new model, which has its spec as `spec`, and whatever the run's objective calls."""


@runtime_checkable
class DataSpec(Protocol):
    """The interface of a data spec in a run, an attrs class; its `image` and `text` are checked.

    Others than the library's pipelines are registered in `pipelines`, or stand at the top of a module that is imported.

    Examples:
        >>> from mobileclip.data import ReinforcedPipelineSpec
        >>> image = mobileclip.inputs.ImageInput(size=256)
        >>> isinstance(ReinforcedPipelineSpec(shards="a.tar", batch_size=8, image=image), DataSpec)
        True
    """

    @property
    def batch_size(self) -> int:
        """Samples of a step: in the spec of a run of all processes, in that which is built of one."""

    def build(self) -> BatchSource[Batch]:
        """Return what makes the batches of this process."""


students: Registry[type[StudentSpec]] = Registry("student")
"""Specs of models to train by name; third parties add theirs here or by an entry point in `mobileclip.student`."""
pipelines: Registry[type[DataSpec]] = Registry("pipeline")
"""Specs of data to train on by name; third parties add theirs here or by an entry point in `mobileclip.pipeline`."""

open_family(StudentSpec, students, own=(DualEncoderSpec, ClassifierSpec, CoCaSpec))
open_family(
    DataSpec, pipelines, own=(ReinforcedPipelineSpec, ColumnPipelineSpec, LabelledPipelineSpec, TextPipelineSpec)
)

if TYPE_CHECKING:
    # A checker knows what the library's own have beside.
    Student: TypeAlias = DualEncoderSpec | Any
    Data: TypeAlias = ReinforcedPipelineSpec | Any
else:
    Student, Data = StudentSpec, DataSpec
