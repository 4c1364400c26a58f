"""Parts of a `tokenizer.json` as the library writes them are read; those on which the library hangs are not."""

import json
from contextlib import nullcontext

import pytest
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from mobileclip.data.text.tokenizer_file import check_parts
from tests.build.tokenizer_parts import mapping, replace, several
from tests.data.tokenizer_files import KINDS
from tests.errors import fails

PARTS = {
    "normalizer": [
        normalizers.BertNormalizer(), normalizers.ByteLevel(), normalizers.Lowercase(), normalizers.NFC(),
        normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(), normalizers.Nmt(), normalizers.Prepend("x"),
        normalizers.Replace("a", "b"), normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]),
        normalizers.Strip(), normalizers.StripAccents(),
    ],
    "pre_tokenizer": [
        pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(), pre_tokenizers.CharDelimiterSplit("-"),
        pre_tokenizers.Digits(), pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Whitespace()]),
        pre_tokenizers.Split(" ", "removed"), pre_tokenizers.UnicodeScripts(), pre_tokenizers.Whitespace(),
        pre_tokenizers.WhitespaceSplit(),
    ],
    "decoder": [
        decoders.BPEDecoder(), decoders.ByteFallback(), decoders.ByteLevel(), decoders.Fuse(), decoders.Metaspace(),
        decoders.Replace("a", "b"), decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
        decoders.Strip(" ", 1, 0), decoders.WordPiece(),
    ],
    "post_processor": [
        processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)), processors.ByteLevel(),
        processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
        processors.TemplateProcessing("[CLS] $A", "[CLS] $A $B", [("[CLS]", 2)]),
    ],
}  # fmt: skip


def with_part(place, part):
    made = KINDS["bert"]()
    setattr(made, place, part)
    return json.loads(made.to_str())


@pytest.mark.parametrize(
    ("place", "part"),
    [pytest.param(place, part, id=type(part).__name__) for place, some in PARTS.items() for part in some],
)
def test_what_the_library_writes_is_known(place, part):
    check_parts(with_part(place, part))


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        ("normalizer", {"prepend": "x" * 512}, None),
        ("normalizer", {"prepend": "x" * 513}, (ValueError, "normalizer", "513")),
        ("normalizer", mapping([0] * 8, b"x" * 64), None),
        ("normalizer", mapping([0] * 8, b"x" * 65), (ValueError, "65")),
        ("normalizer", several("normalizers", *[replace({"String": "ab"}, "xy")] * 15), None),
        ("normalizer", several("normalizers", *[replace({"String": "a"}, "x")] * 16), (ValueError, "17")),
        ("normalizer", replace({"String": "ab"}, "xyz"), (ValueError,)),
        ("normalizer", replace({"Regex": "(a+)+$"}, "b"), (ValueError, "(a+)+$")),
        ("decoder", replace({"String": "ab"}, "xyz"), (ValueError,)),
        ("pre_tokenizer", several("pretokenizers", *[{"type": "ByteLevel"}] * 2), (ValueError, "ByteLevel")),
        ("model", {"max_input_chars_per_word": 1001, "vocab": {}}, (ValueError, "1,001")),
        ("model", {"dropout": 0.1, "vocab": {}}, (ValueError,)),
        ("model", {"vocab": {"x" * 512: 0}}, None),
        ("model", {"vocab": [["x" * 513, 0.0]]}, (ValueError, "513")),
        ("added_tokens", [{"content": "a"}] * 16_384, None),
        ("added_tokens", [{"content": "a"}] * 16_385, (ValueError, "16,385")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bounds_are_held_to_the_last(place, value, error):
    whole = with_part("normalizer", normalizers.NFC()) | {place: value}
    with nullcontext() if error is None else fails(*error):
        check_parts(whole)
