"""Push models to the hub that the environment names, fetch them, and tell what came as JSON."""

import json
import os
import re
import sys
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from mobileclip import reparameterize
from mobileclip.cli import main as command_line
from mobileclip.encoders import save_model
from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.interop import from_pretrained, push_to_hub
from tests.encoders.small import SMALL, TEXT, randomised
from tests.hub import ASTRAY, READER
from tests.interop.models import DUAL, TOWER


def same(model, other):
    """Whether two models have one spec and the same tensors to the bit."""
    ours, theirs = model.state_dict(), other.state_dict()
    same_names = model.spec == other.spec and ours.keys() == theirs.keys()
    return same_names and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def comes_back(repository, model, *, fold=False, **options):
    return same(from_pretrained(repository, fold=fold, **options), model)


def read_card(repository, library):
    """Run the lines of a repository's model card that load it in a library, and return what they name."""
    card = Path(hf_hub_download(repository, "README.md")).read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if f"import {library}" in block]
    names = {}
    exec(block, names)
    return names


def difference(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def failure(action, *arguments, **options):
    try:
        action(*arguments, **options)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "it worked"


def round_trips():
    small, text, tower = randomised(SMALL), randomised(TEXT), randomised(TOWER)
    pushed = push_to_hub(tower, "owner/tower", license="mit", message="first")
    told = {"commit": pushed.commit, "url": pushed.url}
    told["tower"] = comes_back("owner/tower", tower, revision=pushed.commit)
    told["stored"] = read_checkpoint("hf-hub:owner/tower").layout
    push_to_hub(small, "owner/private", license="cc-by-4.0", private=True)
    told["private"] = comes_back("owner/private", small)
    push_to_hub(text, "owner/text", license="mit", revision="next")
    told["text"] = comes_back("owner/text", text, revision="next")
    save_model(text, Path("text.safetensors"))
    of = ("--license", "mit", "--base-model", "owner/tower")
    command_line(["hub", "push", "text.safetensors", "owner/text", *of])
    told["no overwrite"] = failure(push_to_hub, small, "owner/tower", license="mit")
    push_to_hub(small, "owner/tower", license="mit", message="second", overwrite=True)
    told["replaced"] = comes_back("owner/tower", small, revision="main")

    told["digest"] = failure(from_pretrained, "owner/tower", sha256="0" * 64)
    told["public"] = failure(push_to_hub, small, "owner/tower", license="mit", private=True, overwrite=True)
    told["licence"] = failure(push_to_hub, small, "owner/other", license="mine")
    told["astray"] = failure(push_to_hub, small, ASTRAY, license="mit")
    told["astray fetch"] = failure(from_pretrained, ASTRAY)
    os.environ["HF_TOKEN"] = READER
    told["reader"] = failure(push_to_hub, small, "owner/new", license="mit")
    del os.environ["HF_TOKEN"]
    told["nobody"] = failure(push_to_hub, small, "owner/new", license="mit")
    told["hidden"] = failure(from_pretrained, "owner/private", revision="0" * 40)
    return told


def other_libraries():
    dual, tower = randomised(DUAL), randomised(TOWER)
    push_to_hub(dual, "owner/dual", license="mit")
    push_to_hub(tower, "owner/timm", license="mit")
    theirs, encoder = read_card("owner/dual", "open_clip"), read_card("owner/timm", "timm")["encoder"]
    images, tokens = torch.rand(2, 3, 256, 256), theirs["tokenizer"](["a cat", "two dogs on a beach"])
    folded = reparameterize(tower)
    push_to_hub(folded, "owner/folded", license="mit")
    return {
        "image": difference(theirs["model"].encode_image(images), dual.encode_image(images)),
        "text": difference(theirs["model"].encode_text(tokens), dual.encode_text(tokens)),
        "scale": difference(theirs["model"].logit_scale, dual.logit_scale),
        "timm": difference(encoder(images[..., :64, :64]), tower(images[..., :64, :64])),
        "folded": comes_back("owner/folded", folded, fold=True),
    }


if __name__ == "__main__":
    with torch.inference_mode():
        sys.stdout.write(json.dumps({"round trips": round_trips, "other libraries": other_libraries}[sys.argv[1]]()))
