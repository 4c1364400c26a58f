"""Text files that take rows of several lengths: which do, that every length gives one embedding, and who cuts rows."""

import attrs
import pytest
import torch

from mobileclip import ImageTextModel
from mobileclip.data import Tokenizer
from mobileclip.encoders import TextTransformerSpec
from mobileclip.export import ExportSpec, TowerFile, bundled_samples, load_export, read_contract, targets
from mobileclip.export.export import tower_export
from mobileclip.export.towers import cut_to_length, lengths_of
from mobileclip.export.verify import check_lengths
from mobileclip.inputs import TextInput
from tests.errors import fails
from tests.export.models import CAUSAL, MCT, SHALLOW, TOKENS, seeing, small_model

WHOLE, SHORT = 12, 8
CAPTIONS = ["a cat", "red", "a", "two dogs on a bench by a lake in the rain"]


def text_file(folder):
    return next(file for file in read_contract(folder).towers if file.tower == "text")


@pytest.fixture(params=["onnx", "openvino", "torch", "executorch"])
def causal(request, half_onnx, small_export):
    """The target, and an export of a causal text tower for it."""
    return request.param, half_onnx if request.param == "onnx" else small_export(request.param)


class TestWhich:
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
    def test_padding_is_cut_where_no_token_sees_it(self, tower, lengths):
        assert lengths_of(tower.build().eval(), tower.input) == lengths

    @pytest.mark.parametrize(
        ("options", "lengths"),
        [
            ({"target": "onnx"}, (8, 12)),
            ({"target": "onnx", "text_lengths": "full"}, ()),
            ({"target": "litert"}, (8, 12)),
        ],
    )
    def test_the_target_and_the_person_have_their_say(self, options, lengths):
        spec = ExportSpec(output="unused", **options)
        encoder = SHALLOW.text.build().eval()
        assert tower_export("text", encoder, spec, targets.resolve(spec.target), calibration=None).lengths == lengths


class TestFiles:
    def test_every_length_gives_the_models_own_embedding(self, causal):
        target, folder = causal
        file = text_file(folder)
        assert file.lengths == (SHORT, WHOLE)
        assert file.input_shape[1] == WHOLE
        model, tokens = small_model("torch"), Tokenizer(TOKENS)(CAPTIONS[:3])
        expected = model.encode_text(tokens, normalize=True)
        run = targets.resolve(target).open(folder / file.file, file)
        for length in (SHORT, 9, WHOLE):
            rows = tokens[:, :length].to(getattr(torch, file.input_dtype))
            found = torch.cat([run(row[None].contiguous())[0] for row in rows])
            assert torch.cosine_similarity(found, expected).min() > 0.9995, length

    def test_a_loaded_export_picks_the_length_by_the_text(self, causal, monkeypatch):
        target, folder = causal
        kind, seen = type(targets.resolve(target)), []
        whole = kind.open

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
        assert torch.cosine_similarity(found, ImageTextModel(small_model("torch")).encode_text(CAPTIONS)).min() > 0.9995

    def test_rows_are_cut_to_the_longest_text_among_them(self):
        tokens = Tokenizer(TOKENS)(CAPTIONS)
        assert cut_to_length(tokens[:3], (SHORT, WHOLE), TOKENS).tolist() == tokens[:3, :SHORT].tolist()
        assert cut_to_length(tokens, (SHORT, WHOLE), TOKENS).shape == (4, WHOLE)
        assert cut_to_length(tokens[:3], (), TOKENS).shape == (3, WHOLE)
        assert cut_to_length(tokens[:0], (SHORT, WHOLE), TOKENS).shape == (0, WHOLE)


def _file(**changes):
    given = {
        "tower": "text",
        "file": "text.onnx",
        "input_name": "text",
        "input_dtype": "int64",
        "input_shape": (1, WHOLE),
        "output_name": "embedding",
        "output_shape": (1, 12),
        "compute": "float32",
    }
    return TowerFile(**{**given, **changes})


@pytest.mark.parametrize("lengths", [(8,), (12, 8), (8, 8, 12), (0, 12), (8, 13)])
def test_lengths_that_no_file_has_are_refused(lengths):
    with fails("export.rising-numbers-ids-last", str(lengths)):
        _file(lengths=lengths)


def test_a_file_that_sees_the_padding_is_refused_with_lengths(tmp_path):
    spec = attrs.evolve(SHALLOW, text=TextTransformerSpec(**{**attrs.asdict(CAUSAL, recurse=False), "causal": False}))
    encoder = seeing(spec).text_encoder
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)

    @torch.no_grad()
    def run(rows):
        return (encoder(rows),)

    with fails("export.gives-another-embedding-text", "8", "12"):
        check_lengths(run, tokens, TOKENS, _file(lengths=(SHORT, WHOLE)), tmp_path / "text.onnx")
