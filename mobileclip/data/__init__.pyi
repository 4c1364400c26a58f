from .augmentation.mixing import (
    MixingSpec as MixingSpec,
    RandomErasingSpec as RandomErasingSpec,
)
from .augmentation.policy import (
    AugmentationParams as AugmentationParams,
    AugmentationSpec as AugmentationSpec,
    augmentation_rng as augmentation_rng,
    augmentations as augmentations,
    crop_augmentation as crop_augmentation,
    datacompdr_augmentation as datacompdr_augmentation,
    imagenet_augmentation as imagenet_augmentation,
)
from .augmentation.range_augment import (
    RangeAugment as RangeAugment,
    RangeAugmentSpec as RangeAugmentSpec,
    RangeNumbers as RangeNumbers,
)
from .images.files import list_folder as list_folder
from .images.limits import IMAGE_EXTENSIONS as IMAGE_EXTENSIONS, ImageError as ImageError, ImageLimits as ImageLimits
from .images.metadata import CameraMetadata as CameraMetadata
from .images.opening import read_image_file as read_image_file
from .images.resize import Pixels as Pixels
from .images.transform import (
    LIMITS as LIMITS,
    ImageTransform as ImageTransform,
    load_image as load_image,
    normalize_pixels as normalize_pixels,
    read_tower_image as read_tower_image,
)
from .loading.batch import (
    Batch as Batch,
    BatchSource as BatchSource,
    ImageBatch as ImageBatch,
    LabelledBatch as LabelledBatch,
    ReinforcedBatch as ReinforcedBatch,
    TextBatch as TextBatch,
)
from .loading.examples import (
    Captions as Captions,
    Example as Example,
    ExampleMaker as ExampleMaker,
    ExampleSpec as ExampleSpec,
    ReinforcedExampleSpec as ReinforcedExampleSpec,
)
from .loading.image_text_pipeline import (
    ReinforcedPipeline as ReinforcedPipeline,
    ReinforcedPipelineSpec as ReinforcedPipelineSpec,
)
from .loading.order import (
    StreamPosition as StreamPosition,
    joined_positions as joined_positions,
)
from .loading.text_pipeline import (
    TextPipeline as TextPipeline,
    TextPipelineSpec as TextPipelineSpec,
)
from .loading.uids import (
    UidList as UidList,
)
from .loading.webdataset_stages import (
    endless_shards as endless_shards,
    keep_samples as keep_samples,
    make_examples as make_examples,
    read_shards as read_shards,
)
from .samples.members import (
    check_layout as check_layout,
    json_captions as json_captions,
)
from .samples.readers import (
    read_embeddings as read_embeddings,
)
from .samples.sample import (
    LAYOUTS as LAYOUTS,
    AugmentedSample as AugmentedSample,
    ImageTextSample as ImageTextSample,
    Layout as Layout,
    ReinforcedSample as ReinforcedSample,
    StoredSample as StoredSample,
    check_source_image as check_source_image,
    decode_image as decode_image,
    drop_blank as drop_blank,
    hash_image as hash_image,
)
from .shards.files import (
    count_samples as count_samples,
    expand_shards as expand_shards,
    read_reinforced_samples as read_reinforced_samples,
    read_samples as read_samples,
    read_shard as read_shard,
    write_shard as write_shard,
    write_shards as write_shards,
)
from .shards.sidecars import (
    CaptionerEntry as CaptionerEntry,
    ReinforcementCard as ReinforcementCard,
    TeacherEntry as TeacherEntry,
    ViewAgreement as ViewAgreement,
    card_of_shards as card_of_shards,
    find_card as find_card,
    read_card as read_card,
    write_card as write_card,
)
from .skips import (
    BadSampleError as BadSampleError,
    Skip as Skip,
    SkipReport as SkipReport,
)
from .text.stored import (
    StoredTexts as StoredTexts,
    TextsCard as TextsCard,
)
from .text.tokenizer import (
    Tokenizer as Tokenizer,
)
from .text.tokenizer_file import (
    read_text_input as read_text_input,
    train_tokenizer as train_tokenizer,
)
from .workers import LostProcessError as LostProcessError
