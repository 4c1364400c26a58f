"""MCi0 as a classifier of drawn shapes: trained, folded, saved with its class names, and loaded again.

python examples/models/drawn_classifier.py mobileclip_s0.pt      # without a file, from random weights
"""

import random
import sys
import tempfile
from pathlib import Path

import attrs
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mobileclip import reparameterize, specs
from mobileclip.data import ImageTransform
from mobileclip.encoders import Classifier, ClassifierSpec, load_backbone, load_model, save_model
from mobileclip.inputs import ImageInput

SHAPES = ("circle", "square", "triangle", "cross")


def drawing(shape: str, generator: random.Random, side: int = 128) -> Image.Image:
    """Return an image of a shape with random colour, size and position."""
    colour, ground = (tuple(generator.randrange(low, low + 100) for _ in range(3)) for low in (0, 156))
    radius = generator.randrange(side // 5, side // 3)
    x, y = (generator.randrange(radius, side - radius) for _ in range(2))
    left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
    image = Image.new("RGB", (side, side), ground)
    pen, line = ImageDraw.Draw(image), radius // 2
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=colour)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=colour)
    elif shape == "triangle":
        pen.polygon(((x, top), (left, bottom), (right, bottom)), fill=colour)
    else:
        pen.line((left, top, right, bottom), fill=colour, width=line)
        pen.line((left, bottom, right, top), fill=colour, width=line)
    return image


def batch(size: int, transform: ImageTransform, generator: random.Random) -> tuple[Tensor, Tensor]:
    """Return images, `(size, 3, side, side)`, and the index of each image's shape; all shapes are equally frequent."""
    labels = [index % len(SHAPES) for index in range(size)]
    return torch.stack([transform(drawing(SHAPES[label], generator)) for label in labels]), torch.tensor(labels)


def main(
    checkpoint: str | None = None, *, side: int = 128, steps: int = 30, batch_size: int = 16, out: Path
) -> tuple[nn.Module, nn.Module, list[float]]:
    """Train, fold, save, load a classifier; return the trained model, the loaded model, and the loss of each step."""
    torch.manual_seed(0)
    generator = random.Random(0)  # noqa: S311  not for secrets
    mci0 = attrs.evolve(specs.mci0(), input=ImageInput(size=side)).without_projection()
    model: Classifier = ClassifierSpec(image=mci0, num_classes=len(SHAPES), class_names=SHAPES).build().train()
    if checkpoint is not None:
        load_backbone(model, checkpoint)
    transform, losses = ImageTransform(mci0.input), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        images, labels = batch(batch_size, transform, generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 5 == 0:
            print(f"step {step} of {steps}: loss {losses[-1]:.3f}")
    # Running averages of batch norms lag behind fast weights, so compute them for the final weights before folding.
    update_bn([batch(batch_size, transform, generator)[0] for _ in range(8)], model)
    folded = reparameterize(model.eval())
    save_model(folded, out / "shapes.safetensors")
    loaded = load_model(out / "shapes.safetensors")  # the encoder and the names of the classes are in the file
    images, labels = batch(32, transform, generator)
    with torch.inference_mode():
        right = float((loaded(images).argmax(1) == labels).float().mean())
    names = ", ".join(loaded.spec.class_names)
    counts = [sum(tensor.numel() for tensor in each.parameters()) / 1e6 for each in (model, folded)]
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}; right: {right:.0%} of 32 new drawings of {names}")
    print(f"{counts[0]:.2f}M parameters as trained, {counts[1]:.2f}M folded")
    return model, loaded, losses


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(*sys.argv[1:2], out=Path(folder))
