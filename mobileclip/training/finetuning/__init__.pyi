from .batch_norm import (
    FrozenBatchNorm2d as FrozenBatchNorm2d,
    freeze_batch_norm as freeze_batch_norm,
    ordinary_batch_norm as ordinary_batch_norm,
    synchronise_batch_norm as synchronise_batch_norm,
)
from .interpolation import interpolate_weights as interpolate_weights
from .labels import (
    LabelledContrastiveSpec as LabelledContrastiveSpec,
    labelled_contrastive as labelled_contrastive,
    with_labels as with_labels,
)
from .layer_rates import (
    Granularity as Granularity,
    LayerDecayAdamWSpec as LayerDecayAdamWSpec,
    layer_rate_groups as layer_rate_groups,
    rate_scales as rate_scales,
    tower_layers as tower_layers,
)
from .lora import LoraSpec as LoraSpec, add_lora as add_lora, merge_lora as merge_lora
from .scores import Measure as Measure, Results as Results, Score as Score, Scores as Scores
from .spec import (
    BatchNormMode as BatchNormMode,
    FinetuningSpec as FinetuningSpec,
    Tower as Tower,
    freeze_tower as freeze_tower,
)
from .tasks import (
    Task as Task,
    TrainingData as TrainingData,
    label_of as label_of,
    open_task as open_task,
    read_index as read_index,
    split as split,
    write_training_data as write_training_data,
)
