"""Parts of a `tokenizer.json` as the library writes them: each is known with all of its fields, and with no others."""

import json
from contextlib import nullcontext

import pytest
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

from mobileclip.data.text import check_parts
from tests.data.tokenizer_files import KINDS
from tests.errors import fails
from tests.trials.tokenizers import charsmap

PARTS = {
    "normalizer": [
        normalizers.BertNormalizer(),
        normalizers.ByteLevel(),
        normalizers.Lowercase(),
        normalizers.NFC(),
        normalizers.NFD(),
        normalizers.NFKC(),
        normalizers.NFKD(),
        normalizers.Nmt(),
        normalizers.Prepend("x"),
        normalizers.Replace("a", "b"),
        normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]),
        normalizers.Strip(),
        normalizers.StripAccents(),
    ],
    "pre_tokenizer": [
        pre_tokenizers.BertPreTokenizer(),
        pre_tokenizers.ByteLevel(),
        pre_tokenizers.CharDelimiterSplit("-"),
        pre_tokenizers.Digits(),
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Punctuation(),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Whitespace()]),
        pre_tokenizers.Split(" ", "removed"),
        pre_tokenizers.UnicodeScripts(),
        pre_tokenizers.Whitespace(),
        pre_tokenizers.WhitespaceSplit(),
    ],
    "decoder": [
        decoders.BPEDecoder(),
        decoders.ByteFallback(),
        decoders.ByteLevel(),
        decoders.Fuse(),
        decoders.Metaspace(),
        decoders.Replace("a", "b"),
        decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
        decoders.Strip(" ", 1, 0),
        decoders.WordPiece(),
    ],
    "post_processor": [
        processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        processors.ByteLevel(),
        processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
        processors.TemplateProcessing("[CLS] $A", "[CLS] $A $B", [("[CLS]", 2)]),
    ],
}
ALL = pytest.mark.parametrize(
    ("place", "part"),
    [pytest.param(place, part, id=type(part).__name__) for place, some in PARTS.items() for part in some],
)


def with_part(place, part):
    made = KINDS["bert"]()
    setattr(made, place, part)
    return json.loads(made.to_str())


@ALL
def test_what_the_library_writes_is_known(place, part):
    check_parts(with_part(place, part))


@ALL
def test_fields_that_nobody_knows_are_refused(place, part):
    value = with_part(place, part)
    value[place]["surprise"] = True
    with fails("data.known-known", "surprise"):
        check_parts(value)


@pytest.mark.parametrize(("more", "refused"), [(-4, False), (0, False), (4, True)])
def test_a_table_of_a_normaliser_is_as_large_as_may_be_and_no_larger(more, refused):
    value = with_part("normalizer", normalizers.NFC())
    table = charsmap([0] * ((2**20 + more) // 4), b"a\0")
    value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
    with pytest.raises(ValueError, match="no table of sentencepiece") if refused else nullcontext():
        check_parts(value)


def test_patterns_that_may_take_for_ever_are_refused():
    with fails("data.regular-expression-none-published", "pattern"):
        check_parts(with_part("normalizer", normalizers.Replace(Regex("(a+)+$"), "b")))
