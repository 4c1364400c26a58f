"""Weights against what others got from them: the record says which numbers agree, which differ, and what is missing."""

import hashlib
import json
from pathlib import Path

import pytest

import mobileclip
from mobileclip.encoders.checkpoints import PUBLISHED
from mobileclip.inference.known import KnownOutputs, WeightsRecord, check_weights, known_outputs
from mobileclip.serialization import from_json, to_json
from tests.build.commands import run
from tests.errors import fails

PICTURE = Path(mobileclip.__file__).parent / "inference" / "known_outputs" / "cat.jpg"
LABELS = ("a cat", "a dog")


@pytest.fixture(scope="module")
def true(small_file):
    """What the small model gives, as somebody else would publish it."""
    clip = mobileclip.load(small_file)
    picture = {"name": "cat.jpg", "sha256": hashlib.sha256(PICTURE.read_bytes()).hexdigest()}
    image, texts = clip.encode_image(PICTURE), clip.encode_text(list(LABELS))
    probabilities = (100 * image @ texts.T)[0].softmax(-1).tolist()
    both = {"image": picture, "texts": list(LABELS)}
    outputs = [
        {"texts": ["a cat"], "first": [round(one, 4) for one in texts[0, :4].tolist()], "tolerance": 1e-4},
        {"image": picture, "first": [round(one, 4) for one in image[0, :4].tolist()], "tolerance": 1e-4},
        {**both, "probabilities": probabilities, "tolerance": 1e-3},
        {**both, "probabilities": [3 * one for one in probabilities], "factor": 10.0},
    ]
    return [{"model": "small", "source": "this test", **one} for one in outputs]


def known(outputs):
    return from_json(json.dumps({"outputs": outputs}), KnownOutputs)


def test_true_numbers_agree(small_file, true):
    record = check_weights("small", str(small_file), known=known(true))
    assert [one.agrees for one in record.findings] == [True] * 4
    assert record.agrees
    assert from_json(to_json(record), WeightsRecord) == record
    with fails(ValueError, "'small'", "mobileclip_s0"):
        check_weights("small", str(small_file))


@pytest.mark.parametrize("index", range(4))
def test_another_number_is_found_out(index, small_file, true):
    changed = json.loads(json.dumps(true))
    numbers = changed[index].get("first") or changed[index]["probabilities"]
    numbers[0] = numbers[0] * 50 + 0.01
    record = check_weights("small", str(small_file), known=known(changed))
    assert [one.agrees for one in record.findings] == [number != index for number in range(4)]
    assert not record.agrees


def test_a_picture_that_is_not_here_is_named_and_may_be_given(small_file, true, tmp_path):
    (tmp_path / "another.jpg").write_bytes(PICTURE.read_bytes() + b"\0")
    other = hashlib.sha256((tmp_path / "another.jpg").read_bytes()).hexdigest()
    missing = [{**true[1], "image": {"name": "another.jpg", "sha256": other}}]
    record = check_weights("small", str(small_file), known=known(missing))
    (finding,) = record.findings
    assert (finding.agrees, record.agrees) == (None, False)
    assert f"no file has the SHA-256 {other} of another.jpg" in finding.note
    given = check_weights("small", str(small_file), known=known(missing), images=[PICTURE, tmp_path / "another.jpg"])
    assert given.agrees


def test_what_comes_with_the_package_is_of_published_weights():
    outputs = known_outputs().outputs
    assert {one.model for one in outputs} <= PUBLISHED.keys()
    with_picture = {one.image.sha256 for one in outputs if one.image and one.image.name == PICTURE.name}
    assert with_picture == {hashlib.sha256(PICTURE.read_bytes()).hexdigest()}


def test_a_known_output_says_one_thing(true):
    for name, value in (
        *(("first", []), ("texts", [*LABELS]), ("tolerance", None)),
        *(("factor", 2.0), ("probabilities", [1.0]), ("texts", [])),
    ):
        with fails(ValueError):
            known([{**true[0], name: value}])


def test_the_command_writes_a_record(capsys, small_file, true, tmp_path):
    (tmp_path / "known.json").write_text(json.dumps({"outputs": true}), encoding="utf-8")
    given, output = tmp_path / "known.json", tmp_path / "record.json"
    command = ("check-weights", f"small={small_file}", "--known", given, "-o", output)
    status, out, _ = run(capsys, *command)
    assert (status, out.count("agrees: ")) == (0, 4)
    record = from_json((tmp_path / "record.json").read_text(encoding="utf-8"), WeightsRecord)
    assert record == check_weights("small", str(small_file), known=known(true))
    (tmp_path / "known.json").write_text(json.dumps({"outputs": [{**true[0], "first": [9.0]}]}), encoding="utf-8")
    status, out, _ = run(capsys, *command, "--overwrite")
    assert (status, "differs: 'a cat'" in out) == (1, True)
