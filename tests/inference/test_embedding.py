"""What is embedded, from the files that name it."""

from unittest.mock import Mock

import mobileclip
from mobileclip.inference import ModelIdentity, embedding, optimizing
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.inference.embedding import EmbeddingInputs, embed_inputs, read_texts
from tests.collections.pictures import draw
from tests.errors import fails


def test_texts_are_lines_and_files_by_mistake_are_told(tmp_path):
    (tmp_path / "good.txt").write_text("\ufeffa cat\n\n ein Café \n", encoding="utf-8")
    assert read_texts(tmp_path / "good.txt") == ["a cat", " ein Café "]
    (tmp_path / "odd.txt").write_bytes("one\u2028two\x0bthree\r\nfour".encode())
    assert read_texts(tmp_path / "odd.txt") == ["one\u2028two\x0bthree", "four"]
    (tmp_path / "latin.txt").write_bytes("Café".encode("latin-1"))
    (tmp_path / "long.txt").write_text("short\n" + "x" * 10_001, encoding="utf-8")
    for name, *named in (("latin.txt",), ("long.txt", "line 2", "10,001"), ("none.txt",), ("",)):
        with fails((ValueError, OSError), name, *named):
            read_texts(tmp_path / name)


def test_many_image_files_are_embedded_by_a_faster_form(telling_file, tmp_path, monkeypatch):
    clip, identity = mobileclip.load(telling_file), ModelIdentity(weights_sha256="0" * 64, spec="{}", version="0")
    paths = tuple(draw(tmp_path / f"{number}.png", number) for number in range(4))
    plain, _ = embed_inputs(clip, identity, EmbeddingInputs(paths=paths))
    monkeypatch.setattr(optimizing, "WORTH_TRYING", 4)
    watched = Mock(wraps=embedding.encode_images)
    monkeypatch.setattr(embedding, "encode_images", watched)
    fast, _ = embed_inputs(clip, identity, EmbeddingInputs(paths=paths), precision="bfloat16")
    added, _ = embed_inputs(clip, identity, EmbeddingInputs(paths=paths), before=fast)
    assert [call.args[0] is clip for call in watched.call_args_list] == [False, True]
    assert (plain.image * fast.image).sum(axis=1).min() > LEAST_COSINE["bfloat16"]
    assert added.image_paths == ()
