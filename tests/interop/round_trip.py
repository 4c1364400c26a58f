"""Push models to the hub that the environment names, fetch them, and tell what came as JSON."""

import json
import os
import re
import sys
import tempfile
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
    theirs = other.state_dict()
    return (
        model.spec == other.spec
        and model.state_dict().keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    )


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


def tell_round_trips(told):
    small, text, tower = randomised(SMALL), randomised(TEXT), randomised(TOWER)
    pushed = push_to_hub(tower, "owner/tower", license="mit", message="first")
    told["commit"], told["url"] = pushed.commit, pushed.url
    told["tower"] = same(from_pretrained("owner/tower", revision=pushed.commit, fold=False), tower)
    told["stored"] = read_checkpoint("hf-hub:owner/tower").layout

    push_to_hub(small, "owner/private", license="cc-by-4.0", private=True)
    told["private"] = same(from_pretrained("owner/private", fold=False), small)
    push_to_hub(text, "owner/text", license="mit", revision="next")
    told["text"] = same(from_pretrained("owner/text", revision="next", fold=False), text)
    with tempfile.TemporaryDirectory() as scratch:
        save_model(text, Path(scratch) / "text.safetensors")
        of = ("--license", "mit", "--base-model", "owner/tower")
        command_line(["hub", "push", f"{scratch}/text.safetensors", "owner/text", *of])

    told["no overwrite"] = failure(push_to_hub, small, "owner/tower", license="mit")
    push_to_hub(small, "owner/tower", license="mit", message="second", overwrite=True)
    told["replaced"] = same(from_pretrained("owner/tower", revision="main", fold=False), small)


def tell_failures(told):
    small = randomised(SMALL)
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


def tell_other_libraries(told):
    dual, tower = randomised(DUAL), randomised(TOWER)
    push_to_hub(dual, "owner/dual", license="mit")
    theirs = read_card("owner/dual", "open_clip")
    images, tokens = torch.rand(2, 3, 256, 256), theirs["tokenizer"](["a cat", "two dogs on a beach"])
    told["open_clip image"] = difference(theirs["model"].encode_image(images), dual.encode_image(images))
    told["open_clip text"] = difference(theirs["model"].encode_text(tokens), dual.encode_text(tokens))
    told["open_clip scale"] = difference(theirs["model"].logit_scale, dual.logit_scale)
    push_to_hub(tower, "owner/timm", license="mit")
    encoder, images = read_card("owner/timm", "timm")["encoder"], torch.rand(2, 3, 64, 64)
    told["timm"] = difference(encoder(images), tower(images))
    folded = reparameterize(tower)
    push_to_hub(folded, "owner/folded", license="mit")
    told["folded"] = same(from_pretrained("owner/folded"), folded)


@torch.inference_mode()
def main(what):
    told = {}
    if what == "other libraries":
        tell_other_libraries(told)
    else:
        tell_round_trips(told)
        tell_failures(told)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
