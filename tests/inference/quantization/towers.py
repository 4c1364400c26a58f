"""Small towers of every kind that is quantised, with what they take."""

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.export import bundled_samples
from tests.export.models import CONVOLUTIONAL, TOKENS, TRANSFORMERS, pixels, seeing

_MODELS = {
    "mci": (CONVOLUTIONAL, True),
    "mct": (CONVOLUTIONAL, False),
    "vit": (TRANSFORMERS, True),
    "causal": (TRANSFORMERS, False),
}
TOWERS = tuple(_MODELS)


def tower_of(name):
    """Return a folded tower by the name of its kind, and inputs of it."""
    spec, image = _MODELS[name]
    model = reparameterize(seeing(spec)).requires_grad_(requires_grad=False)
    if image:
        return model.image_encoder, pixels(spec.image.input)
    return model.text_encoder, Tokenizer(TOKENS)(bundled_samples().captions)
