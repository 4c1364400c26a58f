"""Tokenizers trained on a few sentences, as their makers build them: BERT's, T5's, XLM-R's and GPT-2's kinds."""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "a photo of a cat on the grass",
    "two dogs play with a red ball, on a beach!",
    "Ein Käfer läuft über die Straße.",
    "the quick brown fox jumps over the lazy dog 1234567890",
    "a black and white photograph of an old town",
    "猫が草の上にいる",
    "three people ride bicycles; it isn't raining",
    "naïve café, “quoted” words — and a dash",
]
TEXTS = [
    *SENTENCES,
    *("", " ", "cat", "CAT", "zzz qqq", "a  b\tc\nd", "word " * 40, "😀 emoji", "e\u0301 ﬁ Ｆｕｌｌ", "[SEP] </s>"),
]


def bert():
    """WordPiece, `[CLS] text [SEP]`, padded with `[PAD]`."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    single, ids = "[CLS] $A [SEP]", [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    pair = f"{single} $B:1 [SEP]:1"
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return made


def t5():
    """Unigram on words with a mark in front, `text </s>`: there is no start token."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    choices = {"special_tokens": ["<pad>", "</s>", "<unk>"], "unk_token": "<unk>", "show_progress": False}
    trainer = trainers.UnigramTrainer(vocab_size=200, **choices)
    made.train_from_iterator(SENTENCES, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


def gpt():
    """Byte-level pairs, `<|endoftext|> text <|endoftext|>`, as the tokenizer of a GPT-2 is given an end; no padding."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special, alphabet = ["<|startoftext|>", "<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet()
    choices = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, **choices))
    single, ids = "<|startoftext|> $A <|endoftext|>", [(token, number) for number, token in enumerate(special)]
    template = processors.TemplateProcessing(single=single, special_tokens=ids)
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return made


KINDS = {"bert": bert, "t5": t5, "gpt": gpt}
