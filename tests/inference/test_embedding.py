"""What is embedded, from the files that name it."""

import pytest

from mobileclip.inference.embedding import read_texts


def test_texts_are_lines_and_files_by_mistake_are_told(tmp_path):
    (tmp_path / "good.txt").write_text("\ufeffa cat\n\n ein Café \n", encoding="utf-8")
    assert read_texts(tmp_path / "good.txt") == ["a cat", " ein Café "]
    (tmp_path / "latin.txt").write_bytes("Café".encode("latin-1"))
    (tmp_path / "long.txt").write_text("short\n" + "x" * 10_001, encoding="utf-8")
    for name, message in (
        ("latin.txt", "is not UTF-8"),
        ("long.txt", "line 2 has 10,001 characters"),
        ("none.txt", "there is no file"),
        (".", "is a folder"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            read_texts(tmp_path / name)
