from .few_samples import NUM_SAMPLES as NUM_SAMPLES, first_samples as first_samples
from .fitted_model import fitted_model as fitted_model
from .models import CONFIGS as CONFIGS, write_tiny_models as write_tiny_models
from .scenes import (
    COLOURS as COLOURS,
    SHAPES as SHAPES,
    draw_shape as draw_shape,
    jpeg as jpeg,
    scene_samples as scene_samples,
    scenes as scenes,
)
from .shapes import OUTLINES as OUTLINES
