"""Data: text and image input, replayed augmentation, reinforced samples and their shards, and named batches.

What lies between a data set's files and a batch belongs here, in the room of its step; what several rooms need lies
beside them. Models and losses do not belong here.
"""

from mobileclip.data.augmentation.erasing import RandomErasingSpec
from mobileclip.data.augmentation.mixing import MixingSpec
from mobileclip.data.augmentation.range_augment import RangeAugment, RangeAugmentSpec, RangeNumbers
from mobileclip.data.augmentation.replay import (
    AugmentationParams,
    AugmentationSpec,
    augmentation_rng,
    augmentations,
    crop_augmentation,
    datacompdr_augmentation,
    imagenet_augmentation,
)
from mobileclip.data.buckets import (  # for the house
    Buckets as Buckets,
    Records as Records,
    leading_bits as leading_bits,
    num_buckets_for as num_buckets_for,
    runs as runs,
    scratch_folder as scratch_folder,
)
from mobileclip.data.images.normalize import normalize_pixels
from mobileclip.data.images.transform import ImageError, ImageLimits, ImageTransform, load_image
from mobileclip.data.loading.ablations import ColumnPipelineSpec, OnlinePipelineSpec
from mobileclip.data.loading.batch import Batch, LabelledBatch, ReinforcedBatch
from mobileclip.data.loading.batch_source import BatchSource
from mobileclip.data.loading.class_data import find_class_names
from mobileclip.data.loading.examples import Captions, Example, ExampleMaker, ReinforcedExampleSpec
from mobileclip.data.loading.keeping import UidList
from mobileclip.data.loading.labelled import LabelledPipeline, LabelledPipelineSpec
from mobileclip.data.loading.pipeline import ReinforcedPipeline, ReinforcedPipelineSpec
from mobileclip.data.loading.position import StreamPosition, joined_positions
from mobileclip.data.loading.spec import ExampleSpec
from mobileclip.data.loading.stage import endless_shards, keep_samples, make_examples, read_shards
from mobileclip.data.randomness import (  # for the house
    derived_seed as derived_seed,
    seeded_rng as seeded_rng,
    shuffled as shuffled,
)
from mobileclip.data.samples.embeddings import read_embeddings
from mobileclip.data.samples.members import check_layout, json_captions
from mobileclip.data.samples.sample import (
    LAYOUTS,
    AugmentedSample,
    ImageTextSample,
    Layout,
    ReinforcedSample,
    StoredSample,
    check_source_image,
    decode_image,
    drop_blank,
    hash_image,
)
from mobileclip.data.shards.card import (
    CaptionerEntry,
    ReinforcementCard,
    TeacherEntry,
    ViewAgreement,
    card_of_shards,
    find_card,
    read_card,
    write_card,
)
from mobileclip.data.shards.files import (
    count_samples,
    expand_shards,
    read_reinforced_samples,
    read_samples,
    write_shard,
    write_shards,
)
from mobileclip.data.skips import (
    MAX_LOGGED as MAX_LOGGED,  # for the house, as are others with `as`
    MAX_NAMED as MAX_NAMED,
    BadSampleError,
    Skip,
    SkipReport,
    attempt as attempt,
    made_or_skip as made_or_skip,
)
from mobileclip.data.sources import (
    ClassFolderSource,
    FolderSource,
    JsonLinesSource,
    RowOptions,
    ShardSource,
    Source,
    TableSource,
    Unit,
    as_source,
    open_data_set,
)
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.data.text.tokenizer_file import read_text_input

__all__ = [
    "LAYOUTS",
    "AugmentationParams",
    "AugmentationSpec",
    "AugmentedSample",
    "BadSampleError",
    "Batch",
    "BatchSource",
    "CaptionerEntry",
    "Captions",
    "ClassFolderSource",
    "ColumnPipelineSpec",
    "Example",
    "ExampleMaker",
    "ExampleSpec",
    "FolderSource",
    "ImageError",
    "ImageLimits",
    "ImageTextSample",
    "ImageTransform",
    "JsonLinesSource",
    "LabelledBatch",
    "LabelledPipeline",
    "LabelledPipelineSpec",
    "Layout",
    "MixingSpec",
    "OnlinePipelineSpec",
    "RandomErasingSpec",
    "RangeAugment",
    "RangeAugmentSpec",
    "RangeNumbers",
    "ReinforcedBatch",
    "ReinforcedExampleSpec",
    "ReinforcedPipeline",
    "ReinforcedPipelineSpec",
    "ReinforcedSample",
    "ReinforcementCard",
    "RowOptions",
    "ShardSource",
    "Skip",
    "SkipReport",
    "Source",
    "StoredSample",
    "StreamPosition",
    "TableSource",
    "TeacherEntry",
    "Tokenizer",
    "UidList",
    "Unit",
    "ViewAgreement",
    "as_source",
    "augmentation_rng",
    "augmentations",
    "card_of_shards",
    "check_layout",
    "check_source_image",
    "count_samples",
    "crop_augmentation",
    "datacompdr_augmentation",
    "decode_image",
    "drop_blank",
    "endless_shards",
    "expand_shards",
    "find_card",
    "find_class_names",
    "hash_image",
    "imagenet_augmentation",
    "joined_positions",
    "json_captions",
    "keep_samples",
    "load_image",
    "make_examples",
    "normalize_pixels",
    "open_data_set",
    "read_card",
    "read_embeddings",
    "read_reinforced_samples",
    "read_samples",
    "read_shards",
    "read_text_input",
    "write_card",
    "write_shard",
    "write_shards",
]
