"""The rules of each layout give every published name and shape, in training form and with branches folded."""

import hashlib
import json

import attrs
import pytest
import torch

from mobileclip.encoders.checkpoints import layouts, resolve_spec, tensor_shapes
from tests.golden.checkpoints import GOLDEN_MODELS

# Of the lines "our name, their name, their shape" with branches folded, as the public code folds and names them.
FOLDED = {
    "apple_mobileclip_s0": "6a6d44da9c44d67e",
    "apple_mobileclip_s1": "4d89029b4cc3f8b0",
    "apple_mobileclip_s2": "d81e6ea3dd1cb883",
    "apple_mobileclip_b": "0953229ef768d82a",
    "openclip_MobileCLIP-S1": "f5ddd6dbed95a434",
    "openclip_MobileCLIP-S2": "30c4c3f35eaf93f2",
    "openclip_MobileCLIP-B": "4bb4f5028db7d48c",
    "openclip_MobileCLIP2-S0": "2ef19358ff7374e7",
    "openclip_MobileCLIP2-S2": "30c4c3f35eaf93f2",
    "openclip_MobileCLIP2-B": "4bb4f5028db7d48c",
    "openclip_MobileCLIP2-S3": "13ad17e94cef3664",
    "openclip_MobileCLIP2-S4": "cd947d0187ae46b8",
    "openclip_MobileCLIP2-L-14": "693d4e0c0d490184",
}


def named(spec, layout, form):
    """By our names, what a layout calls each tensor, and its shape there."""
    shapes = tensor_shapes(spec, form)
    found = {}
    for own, entry in layout.entries(spec, form).items():
        tensor = torch.empty(shapes[own], device="meta")
        found[own] = (entry.name, tuple((entry.reshape.to_layout(tensor) if entry.reshape else tensor).shape))
    return found


@pytest.mark.parametrize("golden", GOLDEN_MODELS, ids=lambda golden: golden.file)
def test_every_name_and_shape_is_the_published_one(golden):
    layout = layouts[golden.layout]
    published = {name: tuple(shape) for name, shape in json.loads(golden.keys_file.read_text()).items()}
    spec = resolve_spec(golden.name)
    spec = attrs.evolve(spec, image=layout.adapted(spec.image, {}))
    constants = {name: one for tower in (spec.image, spec.text) for name, one in layout.constants(tower).items()}
    theirs = dict(named(spec, layout, "training").values())
    assert theirs | {name: tuple(one.shape) for name, one in constants.items()} == published
    folded = named(resolve_spec(golden.name), layout, "branches_folded")
    lines = "\n".join(f"{own} {theirs} {shape}" for own, (theirs, shape) in sorted(folded.items()))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == FOLDED[golden.file]
