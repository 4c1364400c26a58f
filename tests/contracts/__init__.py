"""Contract suites: what every part of a kind must do. Those of blocks, encoders and losses are `mobileclip.testing`."""
