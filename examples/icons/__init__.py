"""An image-text data set of fifteen icon sets and six vendors' emoji, with names, captions, splits and licences."""

from examples.icons.dataset import IconDataSpec, build_dataset

__all__ = ["IconDataSpec", "build_dataset"]
