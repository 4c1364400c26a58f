"""A model whose towers are random and whose projections are fitted: rankings as far apart as those of a trained one.

Of random projections all embeddings lie in one direction, so that rounding decides how they are ranked. Where two ways
to evaluate have to give one number, that would say nothing.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mobileclip.data import ImageTransform, Tokenizer

_BATCH, _RIDGE = 32, 1e-3
# Of the text features' directions: one belongs to their mean, and the weakest to rounding.
_SHARE_OF_DIRECTIONS = 0.9


@torch.no_grad()
def fitted_model(spec, images, texts, *, seed=0):
    """Return a model that knows its pictures better than chance, and far from perfectly, in evaluation mode.

    The text projection spreads the texts' features evenly over their strongest directions, the mean left out; the image
    projection is the ridge regression from a picture's features to the mean of its texts' embeddings.

    Args:
        spec: with a bias in the image tower's projection.
        images: encoded pictures, more than one.
        texts: what is said of each, equally many.
        seed: of the towers.
    """
    transform, tokenize = ImageTransform(spec.image.input), Tokenizer(spec.text.input)
    pixels = torch.stack([transform(image) for image in images])
    tokens = tokenize([text for group in texts for text in group])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = spec.build()
    _enliven(model, pixels[: 2 * _BATCH])

    text, image = model.get_submodule("text_encoder.project"), model.get_submodule("image_encoder.head.project")
    features = _inputs_of(text, model.encode_text, tokens)
    _, spread, directions = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    count = min(int(_SHARE_OF_DIRECTIONS * len(spread)), len(text.weight))
    white = directions[:count] / spread[:count, None] * len(features) ** 0.5
    mean = F.normalize(features.mean(0), dim=0)
    text.weight.zero_()
    text.weight[:count] = white - (white @ mean)[:, None] * mean

    embeddings = torch.cat([model.encode_text(batch, normalize=True) for batch in torch.split(tokens, _BATCH)])
    wanted = embeddings.reshape(len(images), -1, embeddings.shape[1]).mean(1)
    features = _inputs_of(image, model.encode_image, pixels)
    centred = features - features.mean(0)
    gram = centred.T @ centred
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    image.weight.copy_(torch.linalg.solve(gram + ridge, centred.T @ (wanted - wanted.mean(0))).T)
    image.bias.copy_(wanted.mean(0) - features.mean(0) @ image.weight.T)
    return model


def _enliven(model, pixels):
    """Let no block be almost an identity, the norms know what comes in, and end tokens depend on the words."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.fill_(0.5)
        elif name.startswith("text_encoder.layers") and parameter.ndim == 2:
            parameter.mul_(1.5)
        elif name in {"text_encoder.token_embedding.weight", "text_encoder.position"}:
            parameter.mul_(20)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train().encode_image(pixels)
    model.eval()


def _inputs_of(module, call, inputs):
    """Return what reaches a module when the model is called with `inputs`."""
    seen = []
    hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for batch in torch.split(inputs, _BATCH):
        call(batch)
    hook.remove()
    return torch.cat(seen)
