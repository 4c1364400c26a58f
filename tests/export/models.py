"""Small models whose embeddings tell the pictures and captions apart, as those of trained models do."""

import attrs
import numpy as np
import torch

from mobileclip import reparameterize
from mobileclip.data import ImageTransform, load_image
from mobileclip.encoders import DualEncoderSpec, MCiSpec, MCtSpec, StageSpec, TextTransformerSpec, ViTSpec
from mobileclip.encoders.mci import AttentionSpec
from mobileclip.export import ExportSpec, bundled_samples, export_model, targets
from mobileclip.export.export import tower_export
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput, TextInput

PIXELS = ImageInput(size=64, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD)
TOKENS = TextInput(context_length=12, vocab_size=600)
STAGES = (StageSpec(dim=8, depth=1), StageSpec(dim=16, depth=1, mixer=AttentionSpec(head_dim=8), squeeze_excite=True))
MCI = MCiSpec(stages=STAGES, embedding_dim=12, projection_bias=True, input=PIXELS)
MCT = MCtSpec(width=16, num_heads=2, depth=1, embedding_dim=12, input=TOKENS)
VIT = ViTSpec(width=16, num_heads=2, depth=2, embedding_dim=12, input=PIXELS)
CAUSAL = TextTransformerSpec(width=16, num_heads=2, depth=2, embedding_dim=12, causal=True, input=TOKENS)

CONVOLUTIONAL = DualEncoderSpec(image=MCI, text=MCT)
TRANSFORMERS = DualEncoderSpec(image=VIT, text=CAUSAL)
# For what takes its time layer by layer.
SHALLOW = DualEncoderSpec(image=attrs.evolve(VIT, depth=1), text=attrs.evolve(CAUSAL, depth=1))
# For what does not depend on layers.
LEAST = DualEncoderSpec(image=attrs.evolve(MCI, stages=STAGES[:1]), text=attrs.evolve(CAUSAL, depth=0))

# Whose weights are those of a model that no release has.
AUTHOR = "the authors of the weights"


def seeing(spec, seed=0):
    """The model of `spec` with random weights, norms that fit the bundled pictures, and layer scales that count.

    With the norms of a new model, all but nothing of an image reaches the embedding.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = spec.build()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("gamma"):
                    tensor.fill_(0.5)
                elif name.endswith(("token_embedding.weight", "position")):
                    tensor.normal_()
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None
            model.encode_image(pixels(spec.image.input))
    return model.eval()


def small_model(target, seed=0):
    """The model of the fixture `small_export`: of convolutions for ONNX, and one layer deep for the others."""
    return seeing(CONVOLUTIONAL if target == "onnx" else SHALLOW, seed)


def few_samples():
    """The first bundled pictures with a caption each: few enough for random weights to rank them alike in 8 bits."""
    all_of = bundled_samples()
    names, images, captions = all_of.image_names[:5], all_of.images[:5], all_of.captions[:10:2]
    return attrs.evolve(all_of, name="few", image_names=names, images=images, captions=captions)


def exported(model, out, *, preset=None, **options):
    """Export a model with the options of `ExportSpec`, measured on few samples, and return the folder."""
    return export_model(model, ExportSpec(output=out, **options), preset=preset, samples=few_samples())


def pixels(image_input):
    """The bundled pictures as a model takes them."""
    transform = ImageTransform(image_input)
    return torch.stack([transform(load_image(data)) for data in bundled_samples().images])


def raw_pixels(image_input):
    """The bundled pictures as a file takes them that scales and normalises inside."""
    transform = ImageTransform(image_input)
    images = [transform.pixels(load_image(data)) for data in bundled_samples().images]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


# Nothing as it is by default.
UNUSUAL = {"precision": "float16", "dynamic_batch": True, "preprocess": "uint8", "normalize": False}


def one_tower(model, tower, *, target, precision="int8", every=1, layers=(), **options):
    """One tower as `export_model` gives it to a target, with each so many-th input of the calibration data."""
    encoder = getattr(reparameterize(model), f"{tower}_encoder")
    spec = ExportSpec(output="unused", target=target, precision=precision, **options)
    export = tower_export(tower, encoder, spec, targets.resolve(target), calibration=bundled_samples())
    return attrs.evolve(export, calibration=export.calibration[::every], float32=frozenset(layers))


def constant(spec):
    """A model that sees nothing: its image embedding is the bias of its last layer."""
    model = seeing(spec)
    with torch.no_grad():
        model.image_encoder.head.project.weight.zero_()
        model.image_encoder.head.project.bias.normal_()
    return model


def overflowing(spec):
    """A model whose values fit float32, and are beyond float16 in the last layer of its text tower."""
    model = seeing(spec)
    with torch.no_grad():
        model.text_encoder.norm.weight.mul_(3e4)
        model.text_encoder.project.weight.mul_(1e2)
    return model
