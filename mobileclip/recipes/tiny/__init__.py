"""Small data and models for `--tiny`: drawn scenes and shapes, small models, first samples of a data set.

This subpackage is only for quick test runs of recipes, not for published runs.
"""

from mobileclip.recipes.tiny.few_samples import NUM_SAMPLES as NUM_SAMPLES, first_samples as first_samples
from mobileclip.recipes.tiny.scenes import (
    COLOURS as COLOURS,
    SHAPES as SHAPES,
    draw_shape as draw_shape,
    jpeg as jpeg,
    scene_samples as scene_samples,
    scenes as scenes,
)
from mobileclip.recipes.tiny.shapes import OUTLINES as OUTLINES
from mobileclip.recipes.tiny.shrink import (
    drawn as drawn,
    drawn_shapes as drawn_shapes,
    fitted_to_data as fitted_to_data,
    shallow as shallow,
    shrink as shrink,
)
