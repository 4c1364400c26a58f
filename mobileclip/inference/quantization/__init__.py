"""Quantises a folded tower to int8: rounding, ranges, and learning them from its own embeddings.

What any runtime computes of it belongs here; how a format says it, in `export.targets`.
"""

from mobileclip.inference.quantization.ranges import (
    observed_ranges as observed_ranges,
    value_range as value_range,
    weight_steps as weight_steps,
)
from mobileclip.inference.quantization.rounding import (
    LARGEST_VALUE as LARGEST_VALUE,
    LARGEST_WEIGHT as LARGEST_WEIGHT,
    Int8Form as Int8Form,
    Int8Layer as Int8Layer,
    RoundedLayer as RoundedLayer,
    on_grid as on_grid,
    quantised_layers as quantised_layers,
    ranges_of as ranges_of,
    ranges_of_form as ranges_of_form,
    rounded as rounded,
    with_int8_layers as with_int8_layers,
    with_rounded_weights as with_rounded_weights,
)
from mobileclip.inference.quantization.tuning import (
    Agreement as Agreement,
    PlacesSpec as PlacesSpec,
    SavedTunings as SavedTunings,
    TowerQuality as TowerQuality,
    Tuning as Tuning,
    TuningSpec as TuningSpec,
    batches_of as batches_of,
    layers_in_float32 as layers_in_float32,
    num_checked as num_checked,
    state_file as state_file,
    tuning_loss as tuning_loss,
)
