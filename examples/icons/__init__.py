"""An image-text set of icons: fifteen icon sets and six vendors' emoji, with names, captions, splits and licences."""

from examples.icons.dataset import IconDataset, IconDataSpec, IconSplit, build_dataset

__all__ = ["IconDataSpec", "IconDataset", "IconSplit", "build_dataset"]
