"""What a model is evaluated on: pictures with labels or captions, wherever they are."""
