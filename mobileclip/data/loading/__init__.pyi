from .ablations import ColumnPipelineSpec as ColumnPipelineSpec, OnlinePipelineSpec as OnlinePipelineSpec
from .batch import (
    Batch as Batch,
    ImageBatch as ImageBatch,
    LabelledBatch as LabelledBatch,
    ReinforcedBatch as ReinforcedBatch,
    TextBatch as TextBatch,
    empty_shared as empty_shared,
    join_batches as join_batches,
    stack_pixels as stack_pixels,
)
from .batch_source import BatchSource as BatchSource
from .decode import SourceImage as SourceImage
from .endless_order import EndlessOrder as EndlessOrder
from .epoch_order import EpochOrder as EpochOrder
from .examples import (
    Captions as Captions,
    Example as Example,
    ExampleMaker as ExampleMaker,
    ReinforcedExampleSpec as ReinforcedExampleSpec,
)
from .order import (
    NUM_READERS as NUM_READERS,
    Cursor as Cursor,
    Segment as Segment,
    Share as Share,
    StreamPosition as StreamPosition,
    joined_positions as joined_positions,
)
from .reinforced import ReinforcedPipeline as ReinforcedPipeline, ReinforcedPipelineSpec as ReinforcedPipelineSpec
from .shard_reader import SampleReading as SampleReading, ShardReader as ShardReader, TarReader as TarReader
from .spec import ExampleSpec as ExampleSpec, PipelineSpec as PipelineSpec
from .uid_list import UidList as UidList
from .webdataset_stages import (
    endless_shards as endless_shards,
    keep_samples as keep_samples,
    make_examples as make_examples,
    read_shards as read_shards,
)
