from .few_samples import NUM_SAMPLES as NUM_SAMPLES, first_samples as first_samples
from .scenes import (
    COLOURS as COLOURS,
    SHAPES as SHAPES,
    draw_shape as draw_shape,
    jpeg as jpeg,
    scene_samples as scene_samples,
    scenes as scenes,
)
from .shapes import OUTLINES as OUTLINES
from .shrink import drawn as drawn, drawn_shapes as drawn_shapes, shallow as shallow, shrunk as shrunk, taking as taking
