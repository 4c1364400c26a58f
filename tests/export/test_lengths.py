"""Text files that take rows of several lengths: which do, that every length gives one embedding, and who cuts rows."""

import attrs
import pytest
import torch

from mobileclip import ImageTextModel
from mobileclip.data import Tokenizer
from mobileclip.export import ExportSpec, TowerFile, bundled_samples, load_export, read_contract, targets
from mobileclip.export.export import tower_export
from mobileclip.export.towers import cut_to_length, lengths_of
from mobileclip.export.verify import check_lengths
from mobileclip.inputs import TextInput
from tests.errors import fails
from tests.export.models import CAUSAL, MCT, SHALLOW, TOKENS, seeing, small_model

WHOLE, SHORT = 12, 8
CAPTIONS = ["a cat", "red", "a", "two dogs on a bench by a lake in the rain"]


@pytest.fixture(params=["onnx", "openvino", "torch", "executorch"])
def causal(request, half_onnx, small_export):
    """The target, and an export of a causal text tower for it."""
    return request.param, half_onnx if request.param == "onnx" else small_export(request.param)


@pytest.mark.parametrize(
    ("tower", "lengths"),
    [
        (attrs.evolve(CAUSAL, input=TextInput(context_length=77, vocab_size=600)), (8, 16, 32, 77)),
        (attrs.evolve(CAUSAL, input=attrs.evolve(TOKENS, context_length=32)), (8, 16, 32)),
        (attrs.evolve(CAUSAL, input=attrs.evolve(TOKENS, context_length=8)), ()),
        (attrs.evolve(CAUSAL, causal=False), ()),
        (attrs.evolve(CAUSAL, causal=False, depth=0, pool="mean"), (8, 12)),
        (MCT, ()),
    ],
)
def test_padding_is_cut_where_no_token_sees_it(tower, lengths):
    assert lengths_of(tower.build().eval(), tower.input) == lengths


def test_the_target_and_the_person_have_their_say():
    encoder = SHALLOW.text.build().eval()
    for options, lengths in (({}, (8, 12)), ({"text_lengths": "full"}, ()), ({"target": "litert"}, (8, 12))):
        spec = ExportSpec(output="unused", **options)
        assert tower_export("text", encoder, spec, targets.resolve(spec.target), calibration=None).lengths == lengths


def test_every_length_gives_the_models_own_embedding_and_a_loaded_export_picks_it_by_the_text(causal, monkeypatch):
    target, folder = causal
    _, file = read_contract(folder).towers
    assert (file.lengths, file.input_shape[1]) == ((SHORT, WHOLE), WHOLE)
    tokens, kind, seen = Tokenizer(TOKENS)(CAPTIONS[:3]), type(targets.resolve(target)), []
    expected = ImageTextModel(small_model("torch")).encode_text(CAPTIONS)
    run, whole = targets.resolve(target).open(folder / file.file, file), kind.open
    for length in (SHORT, 9, WHOLE):
        rows = tokens[:, :length].to(getattr(torch, file.input_dtype))
        found = torch.cat([run(row[None].contiguous())[0] for row in rows])
        assert torch.cosine_similarity(found, expected[:3]).min() > 0.9995, length

    def watched(self, path, tower, **options):
        run = whole(self, path, tower, **options)
        return lambda inputs: (seen.append(tuple(inputs.shape)), run(inputs))[1]

    monkeypatch.setattr(kind, "open", watched)
    clip = ImageTextModel(load_export(folder))
    found = clip.encode_text(CAPTIONS)
    assert {shape[1] for shape in seen} == {SHORT, WHOLE} or target == "onnx"
    assert seen[0][1] == (WHOLE if target == "onnx" else SHORT), "a batch has the length of its longest text"
    seen.clear()
    clip.encode_text("a")
    assert seen == [(1, SHORT)]
    assert torch.cosine_similarity(found, expected).min() > 0.9995


def test_rows_are_cut_to_the_longest_text_among_them():
    tokens = Tokenizer(TOKENS)(CAPTIONS)
    assert cut_to_length(tokens[:3], (SHORT, WHOLE), TOKENS).equal(tokens[:3, :SHORT])
    for rows, lengths in ((tokens, (SHORT, WHOLE)), (tokens[:3], ()), (tokens[:0], (SHORT, WHOLE))):
        assert cut_to_length(rows, lengths, TOKENS).equal(rows)


def _file(lengths):
    names = {"tower": "text", "file": "text.onnx", "input_name": "text", "output_name": "embedding"}
    shapes = {"input_shape": (1, WHOLE), "output_shape": (1, 12), "input_dtype": "int64", "compute": "float32"}
    return TowerFile(**names, **shapes, lengths=lengths)


@pytest.mark.parametrize("lengths", [(8,), (12, 8), (8, 8, 12), (0, 12), (8, 13)])
def test_lengths_that_no_file_has_are_refused(lengths):
    with fails(ValueError, str(lengths)):
        _file(lengths)


def test_a_file_that_sees_the_padding_is_refused_with_lengths(tmp_path):
    encoder = seeing(attrs.evolve(SHALLOW, text=attrs.evolve(CAUSAL, causal=False))).text_encoder
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)

    @torch.no_grad()
    def run(rows):
        return (encoder(rows),)

    with fails(ValueError, "8", "12"):
        check_lengths(run, tokens, TOKENS, _file((SHORT, WHOLE)), tmp_path / "text.onnx")
