from .cleaning import clean as clean
from .ngrams import KnownNgrams as KnownNgrams, pack_ngrams as pack_ngrams
from .tokenizer import Tokenizer as Tokenizer
from .tokenizer_file import read_text_input as read_text_input
from .tokenizer_parts import PATTERNS as PATTERNS, check_parts as check_parts
from .word_memory import WordMemory as WordMemory
