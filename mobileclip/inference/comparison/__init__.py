"""Compares two forms of a model: pictures, captions, times and distances.

Exports are compared in the same way. What is done with the result does not belong here.
"""

from mobileclip.inference.comparison.calibration import NUM_CROPS as NUM_CROPS, calibration_crops as calibration_crops
from mobileclip.inference.comparison.measuring import (
    LARGEST_ERROR as LARGEST_ERROR,
    LEAST_AGREEMENT as LEAST_AGREEMENT,
    LEAST_COSINE as LEAST_COSINE,
    first_results as first_results,
    largest_error as largest_error,
    least_agreement as least_agreement,
    median_ratio as median_ratio,
    orders as orders,
    smallest_cosine as smallest_cosine,
    times_in_turn as times_in_turn,
    turn as turn,
)
from mobileclip.inference.comparison.samples import Samples as Samples, bundled_samples as bundled_samples
