"""Shards to batches: the order of samples, decoding in worker processes, and resuming.

How a sample or a shard is stored does not belong here: it is for `data.samples` and `data.shards`.
"""

from mobileclip.data.loading.batch import (
    Batch as Batch,
    BatchSource as BatchSource,
    ImageBatch as ImageBatch,
    LabelledBatch as LabelledBatch,
    ReinforcedBatch as ReinforcedBatch,
    TextBatch as TextBatch,
    empty_shared as empty_shared,
    join_batches as join_batches,
    stack_pixels as stack_pixels,
)
from mobileclip.data.loading.examples import (
    Captions as Captions,
    Example as Example,
    ExampleMaker as ExampleMaker,
    ReinforcedExampleSpec as ReinforcedExampleSpec,
    SourceImage as SourceImage,
)
from mobileclip.data.loading.order import (
    NUM_READERS as NUM_READERS,
    Cursor as Cursor,
    EndlessOrder as EndlessOrder,
    EpochOrder as EpochOrder,
    Segment as Segment,
    StreamPosition as StreamPosition,
    joined_positions as joined_positions,
)
from mobileclip.data.loading.reading import (
    SampleReading as SampleReading,
    ShardReader as ShardReader,
    TarReader as TarReader,
)
from mobileclip.data.loading.reinforced import (
    ColumnPipelineSpec as ColumnPipelineSpec,
    OnlinePipelineSpec as OnlinePipelineSpec,
    ReinforcedPipeline as ReinforcedPipeline,
    ReinforcedPipelineSpec as ReinforcedPipelineSpec,
)
from mobileclip.data.loading.spec import ExampleSpec as ExampleSpec, PipelineSpec as PipelineSpec
from mobileclip.data.loading.uids import UidList as UidList
from mobileclip.data.loading.webdataset_stages import (
    endless_shards as endless_shards,
    keep_samples as keep_samples,
    make_examples as make_examples,
    read_shards as read_shards,
)
