"""The page of examples/web: built as people build it, served, and the values that its own tests compare with."""

import base64
import json
import random
import shutil
import subprocess
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import numpy as np
import PIL
import pytest
import tokenizers
import torch
from PIL import Image

from mobileclip.data import ImageTransform, Tokenizer, load_image, read_text_input
from mobileclip.export.contract import prepare_pixels
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput, TextInput
from tests.data.tokenizer_files import KINDS, TEXTS
from tests.golden.checkpoints import golden_texts
from tests.stores import serving

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples" / "web"
SHARED = Path("mobileclip/collections/web/static")
NPM = shutil.which("npm")
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")
SIZES = [(40, 30), (30, 41), (64, 64), (17, 90), (131, 33), (200, 150), (24, 24), (25, 60), (50, 200), (90, 181)]
SIDE = 24
# Letters and signs that tokenizers treat in different ways. Not here: letters of the newest Unicode versions, which
# depend on the browser's.
ALPHABET = "abcXYZ 0123 '’‘“” \t\n.,!?-&;<>|éüßñ日本語ИяاघİıǅﬁK\u0345\u0301\u00ad\u200b\u200d\ufeff\x85\u00a0😀🚀"


def build(folder):
    """Build the page in a copy, and return the folder that is served."""
    shutil.copytree(ROOT / SHARED, folder / SHARED)
    folder = folder / "examples" / "web"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    for command in ("ci --prefer-offline --no-audit --no-fund --ignore-scripts", "run build"):
        done = run_npm(folder, *command.split())
        if done.returncode and any(word in done.stderr for word in OFFLINE):
            pytest.skip("the npm registry cannot be reached")
        assert done.returncode == 0, done.stderr
    return folder / "dist"


def run_npm(folder, *arguments, environment=None):
    """Return what a command of npm gave."""
    return subprocess.run([NPM, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=environment)


@contextmanager
def served(folder):
    """Yield the address of a folder on a plain static server."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/"


def write_values(folder):
    """Write what Pillow, `tokenizers` and the library give, for the page's own tests."""
    for kind, build_tokenizer in KINDS.items():
        build_tokenizer().save(str(folder / f"{kind}.json"))
    own = {kind: read_text_input(folder / f"{kind}.json", context_length=12) for kind in KINDS}
    tokens = [clip_tokens(), of_lengths(clip_tokens()), *(rows_of(kind, own[kind], TEXTS) for kind in KINDS)]
    values = {"resampled": [*resampled()], "composited": [*composited()], "inputs": inputs(), "tokens": tokens}
    for name, value in values.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


def resampled():
    """Pictures of noise, and of black and white alone, which filters overshoot at, with Pillow's pixels."""
    generator = np.random.default_rng(0)
    for (width, height), interpolation in product(SIZES, ("bilinear", "bicubic")):
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for pixels in (noise, np.where(noise < 128, 0, 255).astype(np.uint8)):
            expected = cropped(Image.fromarray(pixels), ImageInput(size=SIDE, interpolation=interpolation))
            kind = {"width": width, "height": height, "size": SIDE, "interpolation": interpolation}
            yield {**kind, "pixels": as_base64(pixels), "expected": as_base64(expected)}


def composited():
    """Every alpha with colours of all kinds, put on backgrounds by Pillow."""
    colours = np.random.default_rng(1).integers(0, 256, (256, 20, 4), dtype=np.uint8)
    colours[..., 3] = np.arange(256)[:, None]
    for background in ("hidden", "white", "black", "#fa8072"):
        color = ImageInput(size=SIDE, background=background).background_color
        expected = np.asarray(load_image(colours, background=color))
        yield {"background": background, "pixels": as_base64(colours), "expected": as_base64(expected)}


def cropped(image, contract):
    """Return the pixels of the library: where Pillow resizes rows first since version 13, also with those before."""
    pixels = ImageTransform(contract).pixels(image)
    height = int(SIDE * image.height / image.width)
    if image.height - height <= 2 * max(0, image.width - SIDE):
        return pixels
    kind = Image.Resampling[contract.interpolation.upper()]
    both = image.resize((image.width, height), kind).resize((SIDE, height), kind)
    top = round((height - SIDE) / 2)
    rows_first = np.asarray(both.crop((0, top, SIDE, top + SIDE)))
    assert int(PIL.__version__.split(".")[0]) < 13 or (rows_first == pixels).all()
    return rows_first


def inputs():
    """Every value of a pixel in every channel, as the library gives it to each kind of export."""
    pixels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    contract = ImageInput(size=16, mean=OPENAI_MEAN, std=OPENAI_STD)
    planes = torch.from_numpy(pixels).movedim(-1, 0)[None]
    taken = {kind: prepare_pixels(planes, contract, kind) for kind in ("host", "uint8", "float32")}
    encoded = {kind: as_base64(tensor.contiguous().numpy()) for kind, tensor in taken.items()}
    return {"pixels": as_base64(pixels), "mean": contract.mean, "std": contract.std, "inputs": encoded}


def clip_tokens():
    """The golden texts and random ones, with the whole rows of Python's tokenizers."""
    generator = random.Random(0)
    drawn = ["".join(generator.choices(ALPHABET, k=generator.randint(1, 60))) for _ in range(300)]
    return rows_of("CLIP", TextInput(), [*golden_texts(), "Ο ΟΔΥΣΣΕΑΣ ΣΤΗ ΘΑΛΑΣΣΑ", *drawn])


def rows_of(name, contract, texts):
    file = Tokenizer(contract).to_json()
    whole = tokenizers.Tokenizer.from_str(file)
    rows = [{"text": text, "ids": whole.encode(text).ids} for text in texts]
    ids = {"padId": contract.pad_id, "startId": contract.start_id, "endId": contract.end_id}
    described = {"contextLength": contract.context_length, **ids}
    return {"name": name, "file": json.loads(file), "contract": described, "rows": rows}


def of_lengths(case):
    """The same texts for a file that takes shorter rows too."""
    contract = {**case["contract"], "lengths": [8, 16, case["contract"]["contextLength"]]}

    def cut(ids):
        return ids[: next(length for length in contract["lengths"] if length > ids.index(contract["endId"]))]

    rows = [{**row, "ids": cut(row["ids"])} for row in case["rows"]]
    assert {len(row["ids"]) for row in rows} == set(contract["lengths"])
    return {**case, "name": f"{case['name']}, of several lengths", "contract": contract, "rows": rows}


def as_base64(array):
    return base64.b64encode(array.tobytes()).decode()
