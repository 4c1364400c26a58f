"""Many samples in one file: tar files, how they are written, and the card that says what a data set is."""
