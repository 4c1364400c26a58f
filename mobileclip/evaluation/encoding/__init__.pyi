from .batch_size import find_batch_size as find_batch_size, fitting as fitting, free_memory as free_memory
from .decoding import decode_ahead as decode_ahead
from .embedding import (
    ImageTextModel as ImageTextModel,
    Tokenize as Tokenize,
    Transform as Transform,
    model_input as model_input,
    read_picture as read_picture,
)
from .encoders import (
    Encoders as Encoders,
    encoding_threads as encoding_threads,
    fastest_form as fastest_form,
)
from .features import Features as Features, extract_features as extract_features, num_images as num_images
from .timing import (
    Latency as Latency,
    Source as Source,
    machine_name as machine_name,
    measure_latency as measure_latency,
)
