"""What ranges of values are found with: real images in several crops, and real captions."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.export.spec import Preprocess
from mobileclip.export.towers.graph import as_taken, input_of
from mobileclip.inference.comparison.calibration import NUM_CROPS, calibration_crops
from mobileclip.inference.comparison.samples import Samples
from mobileclip.inputs import ImageInput


def calibration_inputs(encoder: nn.Module, samples: Samples, preprocess: Preprocess) -> Tensor:
    """Return inputs as an exported tower takes them: about a hundred crops of images, or all captions.

    Shape:
        `(crops, 3, size, size)`, or `(captions, context_length)`, int64.

    Args:
        encoder: a tower, or a classifier.
        samples: images that cannot be read are left out, as they are where an export is measured.
        preprocess: of the export.

    Raises:
        ValueError: if no image can be read.
    """
    contract = input_of(encoder)
    if not isinstance(contract, ImageInput):
        return Tokenizer(contract)(samples.captions)
    crops = calibration_crops(samples.images, contract)
    if not len(crops):
        raise ValueError(
            f"none of the first {min(NUM_CROPS, len(samples.images))} images of {samples.name} can be read, so there "
            "is nothing to find ranges of values with; give another data set with --calibration"
        )
    return as_taken(crops, contract, preprocess)
