"""Tokenizers: CLIP's byte pairs, and any that a `tokenizer.json` describes.

What turns texts into ids belongs here; what embeds them, in `encoders`.
"""

from mobileclip.data.text.cleaning import clean as clean
from mobileclip.data.text.ngrams import KnownNgrams as KnownNgrams, pack_ngrams as pack_ngrams
from mobileclip.data.text.tokenizer import Tokenizer as Tokenizer
from mobileclip.data.text.tokenizer_file import read_text_input as read_text_input
from mobileclip.data.text.tokenizer_parts import PATTERNS as PATTERNS, check_parts as check_parts
from mobileclip.data.text.word_memory import WordMemory as WordMemory
