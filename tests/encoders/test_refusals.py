"""Every way in which a checkpoint is refused, by one table of what is wrong with it and the code of the error."""

import base64
import copy
import io
import json
import pickle
import warnings
import zipfile
import zlib
from functools import cache
from typing import get_args

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save as safetensors_bytes, save_file
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import models
from mobileclip.data import read_text_input
from mobileclip.encoders import (
    CheckpointError,
    ClassifierSpec,
    DualEncoderSpec,
    TextTransformerSpec,
    load_backbone,
    load_model,
    save_model,
)
from mobileclip.inputs import MAX_TOKENIZER_BYTES as MOST
from mobileclip.tensor_files import CheckpointCode, read_tensors
from tests.build.torch_files import torch_bytes
from tests.data.tokenizer_files import bert
from tests.encoders.small import COCA_VIT, IMAGE, SMALL, TEXT, VIT, randomised
from tests.errors import fails
from tests.golden.checkpoints import golden

BARE = IMAGE.without_projection()
OFFICIAL = {"layout": "official", "described": False}
CLASSIFIER = ClassifierSpec(image=BARE, num_classes=5)
REDUCE, EXTRA = (f"image_encoder.model.conv_exp.se.{name}" for name in ("reduce.bias", "extra"))
VARIANCE = "stages.0.blocks.0.ffn.conv.norm.running_var"
NORM, HEAD = "text_encoder.final_layer_norm.bias", "visual.trunk.head.fc.bias"


@attrs.frozen(kw_only=True)
class WithMarginSpec(DualEncoderSpec):
    margin: float = 0.1


@cache
def built(spec, form="training"):
    """The one model of a spec, not to be changed."""
    return randomised(spec) if form == "training" else reparameterize(built(spec))


WEIGHTS = {"weight": torch.arange(12.0).reshape(3, 4), "count": torch.tensor(7)}
FILES = {
    "archive": torch_bytes(WEIGHTS),
    "stream": torch_bytes(WEIGHTS, archive=False),
    "safetensors": safetensors_bytes(WEIGHTS),
}
SHARED = torch.arange(1000.0)
HEADER_END = 8 + int.from_bytes(FILES["safetensors"][:8], "little")


def reads(content):
    """A call that reads the tensors of a file; what is no bytes is written by torch."""

    def call(folder):
        (folder / "m.pt").write_bytes(content if isinstance(content, bytes) else torch_bytes(content))
        read_tensors(folder / "m.pt")

    return call


def archive(*names, **options):
    """An archive of files with these names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        for name in names:
            quietly(file.writestr, f"m/{name}", bytes(100))
    return buffer.getvalue()


def header(table, metadata=None):
    """A safetensors file of a header alone."""
    text = json.dumps(table if metadata is None else {**table, "__metadata__": metadata}).encode()
    return len(text).to_bytes(8, "little") + text


def loads(spec, *wanted, layout="mobileclip", form="training", edit=None, described=True, load=load_model, **options):
    """A call that saves a model, changes tensors and metadata of the file by `edit`, and loads it.

    Args:
        described: whether the file keeps its metadata.
        load: takes the file, `wanted` and `options`.
    """

    def call(folder):
        path = folder / "m.safetensors"
        save_model(built(spec, form), path, layout=layout)
        if edit is not None or not described:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            tensors = load_file(path)
            edit and edit(tensors, metadata)
            save_file(tensors, path, metadata if described else None)
        load(path, *wanted, **options)

    return call


def fills_backbone(image):
    """What fills the tower of a classifier from a file, which on an error leaves it as it was."""

    def load(path):
        classifier = ClassifierSpec(image=image, num_classes=2).build()
        before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
        try:
            load_backbone(classifier, path)
        finally:
            torch.testing.assert_close(dict(classifier.state_dict()), before, rtol=0, atol=0)

    return load


def with_tokenizer(change):
    """A call that loads a text tower whose file's tokenizer is another text; None where there is none."""

    def call(folder):
        bert().save(str(folder / "tokenizer.json"))
        contract = read_text_input(folder / "tokenizer.json", context_length=12)

        def edit(_, metadata):
            changed = change(metadata.pop("mobileclip.tokenizer"))
            metadata.update({} if changed is None else {"mobileclip.tokenizer": changed})

        loads(TextTransformerSpec(width=16, num_heads=2, depth=1, embedding_dim=12, input=contract), edit=edit)(folder)

    return call


def tokenizer_of(content):
    """A call that loads a text tower whose file's tokenizer is this content, as files hold one."""
    return with_tokenizer(lambda _: base64.b64encode(zlib.compress(content)).decode())


def saves(model, name="m.safetensors", spec=None):
    """A call that saves a model, which on an error leaves no file."""

    def call(folder):
        one = copy.deepcopy(model)
        if spec is not None:
            one.spec = spec
        try:
            save_model(one, folder / name)
        finally:
            assert not list(folder.iterdir())

    return call


def full_size(*wanted):
    """A call that loads the names and shapes of a published checkpoint."""
    return lambda folder: load_model(
        golden("apple_mobileclip_s0").write_shapes(folder / "s0.safetensors"), *wanted, mmap=True
    )


def export(size):
    """A call that loads the folder of an export, whose contract is of this size."""

    def call(folder):
        (folder / "mobileclip.json").write_text('{"target": "onnx"}'.ljust(size), encoding="utf-8")
        save_file(WEIGHTS, folder / "golden.safetensors")
        load_model(folder)

    return call


class Payload:
    def __reduce__(self):
        return print, ("executed",)


def official(edit):
    """A call that loads a file of the release, in which something was changed, as the model that it is of."""
    return loads(SMALL, SMALL, edit=edit, **OFFICIAL)


def renamed(tensors, _):
    tensors[EXTRA] = tensors.pop(REDUCE)


def with_values(name, value):
    return lambda tensors, _: tensors.update({name: value})


def scaled(value):
    return loads(SMALL, edit=with_values("logit_scale", torch.tensor(value)))


def described(**metadata):
    return lambda _, own: own.update({f"mobileclip.{name}": value for name, value in metadata.items()})


def quietly(make, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments)


LARGER = attrs.evolve(SMALL, image=attrs.evolve(IMAGE, input=attrs.evolve(IMAGE.input, size=128)))
WIDER = attrs.evolve(SMALL, text=attrs.evolve(TEXT, width=64))
CAUSAL = attrs.evolve(SMALL, text=attrs.evolve(TEXT, causal=True))
TYPES = {"complex": torch.complex64, "eight bits": torch.float8_e4m3fn, "unsigned": torch.uint16}
# What is wrong: the code of the error, the call that raises it, and what the message names.
REFUSED = {
    "empty": ("damaged", reads(b"")),
    "a text": ("damaged", reads(b"not a checkpoint at all"), "m.pt"),
    **{f"{kind} without its end": ("damaged", reads(content[:-1])) for kind, content in FILES.items()},
    **{f"half of {kind}": ("damaged", reads(content[: len(content) // 2])) for kind, content in FILES.items()},
    "no numbers": ("damaged", reads(FILES["safetensors"][:HEADER_END])),
    "compressed": ("damaged", reads(archive("data.pkl", compression=zipfile.ZIP_DEFLATED))),
    "an archive with a file twice": ("damaged", reads(archive("data.pkl", "data.pkl"))),
    "half a header": ("damaged", reads(FILES["safetensors"][: HEADER_END - 1])),
    "a header that is no JSON": ("damaged", reads((9).to_bytes(8, "little") + b'{"a": 1 x')),
    "a header longer than the file": ("damaged", reads((99).to_bytes(8, "little") + b'{"a": 1}')),
    "metadata that is no text": ("damaged", reads(header({}, {"a": 3}))),
    "metadata that is no table": ("damaged", reads(header({}, [1]))),
    "too many tensors": ("damaged", reads(header({str(n): {"dtype": "F32"} for n in range(65_537)})), "65,537"),
    "a name of a page": ("damaged", reads(safetensors_bytes({"n" * 5000: torch.ones(1)})), "5,000"),
    "tensors that share their numbers": ("damaged", reads({str(n): SHARED for n in range(5)})),
    "more blocks than tensors": (
        "damaged",
        loads(TEXT, edit=lambda tensors, _: [tensors.pop(name) for name in list(tensors)[1:]]),
    ),
    "something that runs": ("unsafe", reads({"weight": Payload()}), "print"),
    "a class": ("unsafe", reads({"a": io.BytesIO}), "_io.BytesIO"),
    "a number": ("not_weights", reads({"a": 3.0}), "'a'", "float"),
    "no dictionary": ("not_weights", reads([torch.zeros(2)])),
    "nothing": ("not_weights", reads({})),
    "a name that is a number": ("not_weights", reads({1: torch.zeros(2)}), "number 1"),
    "a long name": ("not_weights", reads({"a" * 79: 3.0}), f"'{'a' * 79}..."),
    "sparse": ("not_weights", reads({"a": torch.zeros(2).to_sparse()}), "'sparse'"),
    "a sparse parameter": ("not_weights", reads({"a": nn.Parameter(torch.zeros(2).to_sparse())}), "'sparse'"),
    "expanded": ("not_weights", reads({"a": torch.zeros(1).expand(2**40)}), "'a'"),
    "meta": ("not_weights", reads({"a": torch.zeros(2, device="meta")}), "'a'"),
    "nested": (
        "not_weights",
        reads({"a": quietly(torch.nested.nested_tensor, [torch.zeros(2), torch.zeros(3)])}),
        "'nested'",
    ),
    "quantized": (
        "not_weights",
        reads({"a": quietly(torch.quantize_per_tensor, torch.ones(3), 0.1, 0, torch.qint8)}),
        "'quantized'",
    ),
    **{kind: ("not_weights", reads({"a": torch.zeros(2).to(one)}), str(one)) for kind, one in TYPES.items()},
    **{
        f"{one} in safetensors": ("not_weights", reads(safetensors_bytes({"a": torch.zeros(2).to(one)})), "'a'")
        for one in (torch.float8_e4m3fn, torch.uint16, torch.uint64)
    },
    "another digest": ("digest", loads(SMALL, load=lambda path: read_tensors(path, sha256="0" * 64)), "0" * 64),
    "a spec that is none": ("description", loads(SMALL, edit=described(spec='{"image": 3}'))),
    "a kind of later": ("description", loads(SMALL, edit=described(kind="audio_encoder")), "audio_encoder"),
    "a form of later": ("description", loads(SMALL, edit=described(form="melted")), "melted"),
    "a layout of later": ("description", loads(SMALL, edit=described(layout="new")), "new"),
    "no tokenizer": ("description", with_tokenizer(lambda _: None)),
    "a tokenizer of other letters": ("description", with_tokenizer(lambda text: f"*{text}")),
    "a tokenizer with a space": ("description", with_tokenizer(lambda text: f"{text[:40]} {text[40:]}")),
    "a tokenizer cut off": ("description", with_tokenizer(lambda text: text[: len(text) // 8 * 4])),
    "a tokenizer not compressed": ("description", with_tokenizer(lambda _: base64.b64encode(b"text").decode())),
    "a tokenizer of no text": ("description", tokenizer_of(b"\xff")),
    "a tokenizer too large": ("description", tokenizer_of(bytes(MOST + 1)), f"{MOST:,}"),
    "names of no layout": ("unknown_layout", lambda _: load_model(WEIGHTS)),
    "a file of no layout": (
        "unknown_layout",
        lambda at: (save_file(WEIGHTS, at / "a.pt"), load_model(at / "a.pt")),
        "a.pt",
    ),
    "no known model": ("unknown_model", loads(SMALL, described=False)),
    "several known models": ("ambiguous", loads(SMALL, described=False), "first", "second"),
    "several known models, official": ("ambiguous", loads(SMALL, **OFFICIAL), "first", "second"),
    "several known models of a tower": ("ambiguous", loads(TEXT, described=False), "first", "second"),
    "several files": (
        "ambiguous",
        lambda at: [save_file(WEIGHTS, at / f"{n}.safetensors") for n in "ab"] + load_model(at),
        "a.safetensors",
    ),
    "another size": ("another_model", loads(SMALL, LARGER), "image.input.size", "64", "128"),
    "other classes": ("another_model", loads(CLASSIFIER, attrs.evolve(CLASSIFIER, num_classes=6)), "5", "6"),
    "no classifier": ("another_model", loads(SMALL, CLASSIFIER, **OFFICIAL)),
    "another tower": ("no_such_tower", loads(TEXT, IMAGE)),
    "other channels": ("another_model", loads(IMAGE, IMAGE.with_channels(4)), "(0.0, 0.0, 0.0, 0.0)"),
    **{
        f"a backbone of another {what}": ("another_model", loads(SMALL, load=fills_backbone(image)), what)
        for what, image in {
            "ffn_ratio": attrs.evolve(BARE, ffn_ratio=2.0),
            "embedding_dim": attrs.evolve(IMAGE, embedding_dim=8),
            "mean": attrs.evolve(BARE, input=attrs.evolve(BARE.input, mean=(0.5, 0.5, 0.5))),
            "ViTSpec": VIT,
        }.items()
    },
    "texts of a classifier": ("no_such_tower", loads(CLASSIFIER, tower="text")),
    "images of a text tower": ("no_such_tower", loads(TEXT, tower="image")),
    "images of a captioner": ("no_such_tower", loads(COCA_VIT, tower="image"), "captioner"),
    "a tensor of another name": ("does_not_fit", official(renamed), REDUCE, EXTRA),
    "a tensor too many": ("does_not_fit", official(with_values("optimiser", torch.zeros(1))), "optimiser"),
    "a tensor of another shape": (
        "does_not_fit",
        official(with_values(NORM, torch.zeros(31))),
        "final_layer_norm.bias",
        "(31,)",
        "(32,)",
    ),
    "weights of other channels": (
        "does_not_fit",
        loads(IMAGE, IMAGE.with_channels(4), described=False),
        "in_channels=4",
    ),
    "another width": ("does_not_fit", loads(SMALL, WIDER, described=False)),
    "another published model": ("does_not_fit", full_size("mobileclip_s1"), "mobileclip_s0"),
    "a bias that its spec does not have": (
        "does_not_fit",
        loads(SMALL, layout="open_clip", edit=with_values(HEAD, torch.ones(24))),
        HEAD,
    ),
    "counts for weights": ("another_dtype", scaled(3), "logit_scale"),
    "NaN": ("not_finite", scaled(torch.nan), "logit_scale"),
    "NaN once folded": ("not_finite", loads(IMAGE, edit=with_values(VARIANCE, torch.full((16,), -1.0))), "NaN"),
    "infinite": ("not_finite", scaled(torch.inf), "logit_scale"),
    "folded, to be trained": ("folded", loads(SMALL, form="folded", fold=False)),
    "folded, as a backbone": ("folded", loads(SMALL, form="folded", load=fills_backbone(BARE))),
    "an export": ("export", export(0), "'onnx'"),
    "an export of a large contract": ("export", export(1 << 24), "'onnx'"),
    "an export of a contract too large": ("export", export((1 << 24) + 1)),
    **{
        f"the address {address}": ("address", lambda _, address=f"hf-hub:{address}": load_model(address))
        for address in ("owner", "owner/name@", "owner/name#sha256=12", "owner/name/../x\n", "/x/y")
    },
    "no connection": ("not_fetched", lambda _: load_model("hf-hub:owner/name"), "owner/name"),
    "a folder of nothing": ("no_checkpoint", load_model),
    "not safetensors": ("not_storable", saves(built(SMALL), "m.pt"), "m.pt"),
    "an unknown kind of model": ("not_storable", saves(nn.Linear(2, 2), spec=IMAGE.input), "ImageInput"),
    "a spec with more to it": (
        "not_storable",
        saves(nn.Linear(2, 2), spec=WithMarginSpec(image=IMAGE, text=TEXT)),
        "WithMarginSpec",
    ),
}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No hub, and two models known by name, of one shape."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(models, "_values", {name: models[name] for name in ("mobileclip_s0", "mobileclip_s1")})


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_is_refused_by_its_code(what, tmp_path, monkeypatch, capfd):
    code, call, *named = REFUSED[what]
    if code == "ambiguous":
        monkeypatch.setitem(models._values, "first", SMALL)
        monkeypatch.setitem(models._values, "second", CAUSAL)
    with fails(CheckpointError, *named) as caught:
        call(tmp_path)
    assert caught.value.code == code
    assert "executed" not in capfd.readouterr().out


def test_every_code_is_raised():
    assert {code for code, *_ in REFUSED.values()} == set(get_args(CheckpointCode))


def test_a_code_survives_another_process():
    error = pickle.loads(pickle.dumps(CheckpointError("it is folded", code="folded")))
    assert (str(error), error.code) == ("it is folded", "folded")
