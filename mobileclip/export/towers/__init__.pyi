from .attention import set_attention as set_attention, written_out_attention as written_out_attention
from .calibration import calibration_inputs as calibration_inputs
from .fallback import (
    keep_in_float32 as keep_in_float32,
    layers_in_float32 as layers_in_float32,
    stored_layers as stored_layers,
)
from .graph import (
    TowerExport as TowerExport,
    as_taken as as_taken,
    input_of as input_of,
    output_dim as output_dim,
    with_end as with_end,
)
from .int8 import EVERY_OUTPUT as EVERY_OUTPUT, graph_in_int8 as graph_in_int8
from .lengths import cut_to_length as cut_to_length, lengths_of as lengths_of
from .ranges import given_ranges as given_ranges
from .resizing import resized as resized
from .weights import RoundedWeight as RoundedWeight, round_weight as round_weight
