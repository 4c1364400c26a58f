"""Quantises a folded tower to int8: rounding, ranges, and learning them from its own embeddings.

What any runtime computes of it belongs here; how a format says it, in `export.targets`.
"""

from mobileclip.inference.quantization.carried import (
    Int8Form as Int8Form,
    Int8Layer as Int8Layer,
    ranges_of_form as ranges_of_form,
    with_int8_layers as with_int8_layers,
)
from mobileclip.inference.quantization.grid import (
    LARGEST_VALUE as LARGEST_VALUE,
    LARGEST_WEIGHT as LARGEST_WEIGHT,
    on_grid as on_grid,
)
from mobileclip.inference.quantization.places import PlacesSpec as PlacesSpec, layers_in_float32 as layers_in_float32
from mobileclip.inference.quantization.quality import Agreement as Agreement, TowerQuality as TowerQuality
from mobileclip.inference.quantization.ranges import (
    observed_ranges as observed_ranges,
    value_range as value_range,
    weight_steps as weight_steps,
)
from mobileclip.inference.quantization.rounding import (
    RoundedLayer as RoundedLayer,
    quantised_layers as quantised_layers,
    ranges_of as ranges_of,
    rounded as rounded,
    with_rounded_weights as with_rounded_weights,
)
from mobileclip.inference.quantization.saved import SavedTunings as SavedTunings, state_file as state_file
from mobileclip.inference.quantization.tuning import (
    Tuning as Tuning,
    TuningSpec as TuningSpec,
    batches_of as batches_of,
    num_checked as num_checked,
    tuning_loss as tuning_loss,
)
