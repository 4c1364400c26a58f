"""The losses tile by tile: values and gradients in memory that grows with the batch, not with its square."""
