"""The fair table: the same forms for both sides, what is missing by name, and the best against the best."""

import sys
import time

import attrs
import pytest
import torch

from benchmarks.data import photo
from benchmarks.harness import Machine, Results, Value
from benchmarks.runtime_forms import FORMS, Contender, Contestant, at_once, fastest, variants_of
from benchmarks.runtime_sides import REDUCED, Match, calibration_inputs, readers_of
from benchmarks.runtimes import RuntimesBenchSpec, best_forms, compare, gate, rows_of
from mobileclip import reparameterize
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.inference.comparison import bundled_samples
from mobileclip.inference.optimization import Calibration
from mobileclip.inference.quantization import PlacesSpec, rounded, with_rounded_weights
from tests.export.models import CONVOLUTIONAL, PIXELS, TOKENS, TRANSFORMERS, seeing

SMALL = RuntimesBenchSpec(rounds=2, trial_rounds=1)


def match(tower="image", *, batch_size=2, spec=CONVOLUTIONAL, files=(), readers=None):
    """A small tower as both sides."""
    mine = getattr(reparameterize(seeing(spec)), f"{tower}_encoder")
    release, ours = (Contestant(side=side, module=mine, mine=mine, tower=tower) for side in ("release", "ours"))
    if tower == "text":
        inputs = Tokenizer(TOKENS)(bundled_samples().captions)
        calibration = Calibration.of(inputs)
    else:
        calibration = Calibration.of_package(PIXELS)
        calibration = attrs.evolve(calibration, ranges=calibration.ranges[::8])
        inputs = calibration.measured
    ranges = PlacesSpec().observed(mine, lambda: [calibration.ranges])
    quantised = with_rounded_weights(mine, rounded(mine, ranges))
    return Match(
        sides=(release, attrs.evolve(ours, quantised=quantised)),
        inputs=inputs[:batch_size],
        calibration=calibration,
        files=files,
        readers=dict(readers or {}),
    )


def test_cases_have_names_that_choose_them():
    def names(**choices):
        return ["-".join(case.labels.values()) for case in RuntimesBenchSpec(**choices).cases()]

    assert len(names()) == 3 * 2 * 2 * 2
    assert names(only=("s0-image-1-", "b-text-32-2")) == ["s0-image-1-1", "s0-image-1-2", "b-text-32-2"]
    with pytest.raises(ValueError, match="no case begins with 's9'; there are: s0-image-1-1, "):
        names(only=("s9",))


def test_larger_cases_are_expected_to_take_longer():
    def seconds(*case, **choices):
        return RuntimesBenchSpec(forms=("eager",), **choices).expected_seconds(*case)

    small = seconds("s0", "image", 1, 2)
    assert 0 < seconds("s0", "image", 1, 2, from_bytes=False) < small < seconds("s0", "image", 1, 1)
    assert small < seconds("s2", "image", 1, 2) < seconds("s2", "image", 32, 2)
    assert small < seconds("s0", "image", 1, 2, rounds=30)


def test_both_sides_have_every_form_and_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    files = tuple(photo(number, 100, quality=90, seed=0) for number in range(2))
    transform = ImageTransform(PIXELS)
    small = match(files=files, readers=dict.fromkeys(("release", "ours", REDUCED), transform))
    spec = attrs.evolve(SMALL, forms=("eager", "eager_bf16", "openvino_int8", "openvino_tuned"))
    rows = list(compare(small, spec, tmp_path))
    sides = ["release", "ours", REDUCED]
    best = rows[4].notes["chosen"].split(" against ")[::-1]
    assert [(row.case["from"], row.case["side"], row.case["form"]) for row in rows] == [
        *(("pixels", side, form) for form in ("eager", "eager_bf16") for side in sides[:2]),
        ("pixels", "ours", "best"),
        *(("bytes", side, best[side != "release"]) for side in sides),
        *(("bytes", side, "best") for side in sides[1:]),
        *(("pixels", side, "openvino_int8") for side in sides[:2]),
        ("pixels", "ours", "openvino_tuned"),
    ]
    assert all(row.failure.startswith("not installed: openvino; `pip install") for row in rows[-3:])
    for row in rows[:-3]:
        compared = row.case["from"] == "pixels" or best[0] == best[1]
        assert ("ratio" in row.values) == (row.case["side"] != "release" and row.case["form"] != "best" and compared)
        assert row.values["of the release's best"].number > 0
        if row.case["form"] != "best":
            assert row.values["cosine"].number > (0.999 if row.case["form"] == "eager_bf16" else 1 - 1e-6)
            assert row.notes["gates"] == "passed"


def test_what_cannot_be_made_is_a_failure_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.runtime_forms.exported", lambda *_, **__: 1 / 0)
    spec = attrs.evolve(SMALL, forms=("eager", "onnxruntime"), from_bytes=False)
    *measured, release, ours = compare(match(), spec, tmp_path)
    assert [row.failure for row in measured] == [None] * 3
    assert {row.failure for row in (release, ours)} == {"ZeroDivisionError: division by zero"}


def test_tuned_int8_wants_what_quantize_wrote(tmp_path):
    small = match()
    release, ours = small.sides
    assert ours.int8_model("openvino", small.inputs, lengths=False) is None
    spec = attrs.evolve(SMALL, forms=("eager", "openvino_tuned"), from_bytes=False)
    *_, row = compare(attrs.evolve(small, sides=(release, attrs.evolve(ours, quantised=None))), spec, tmp_path)
    assert row.failure.endswith("no file of `mobileclip quantize` holds this tower; give --quantised FOLDER")


TIMES = {
    ("release", "eager"): [8.0, 16.0, 9.0],
    ("ours", "eager"): [4.0, 8.0, 4.5],
    ("release", "openvino"): [2.0, 4.0, 50.0],
    ("ours", "openvino"): [1.0, 3.0, 40.0],
}


def test_the_best_is_the_fastest_that_passes_its_gates():
    passed = dict.fromkeys(TIMES, "")
    assert best_forms(TIMES, passed) == {"ours": "openvino", "release": "openvino"}
    assert best_forms(TIMES, passed | {("release", "openvino"): "no"}) == {"ours": "openvino", "release": "eager"}
    refused = passed | {("ours", "openvino"): "no", ("ours", "eager"): "no"}
    assert best_forms(TIMES, refused) == {"release": "openvino"}


def test_ratios_are_to_the_same_form_and_to_the_best():
    best = {"release": "openvino", "ours": "openvino"}
    rows = list(rows_of("pixels", TIMES, dict.fromkeys(TIMES, 1.0), best, {key: {"gates": "passed"} for key in TIMES}))
    found = {(row.case["side"], row.case["form"]): row.values for row in rows}
    assert found["ours", "eager"]["ratio"] == Value(number=0.5, low=0.5, high=0.5)
    assert found["ours", "openvino"]["ratio"].number == 0.75
    assert "ratio" not in found["release", "eager"]
    assert found["release", "eager"]["of the release's best"].number == 4
    assert found["ours", "best"]["of the release's best"].number == 0.75
    assert rows[-1].notes == {"chosen": "openvino against openvino"}
    none = rows_of("pixels", TIMES, dict.fromkeys(TIMES, 1.0), {"ours": "eager"}, {key: {} for key in TIMES})
    assert all("of the release's best" not in row.values for row in none)


def test_the_best_against_the_best_is_told_at_the_end(capsys):
    best = {"release": "openvino", "ours": "openvino"}
    rows = rows_of("pixels", TIMES, dict.fromkeys(TIMES, 1.0), best, {key: {} for key in TIMES})
    labelled = tuple(attrs.evolve(row, case={"model": "s0", **row.case}) for row in rows)
    SMALL.finish(Results(benchmark="runtimes", choices={}, machine=Machine.here(), rows=labelled))
    assert capsys.readouterr().out == "s0 pixels ours: 0.75 (0.5 to 0.8), openvino against openvino\n"


def test_gates_are_measured_on_pictures_and_captions_of_ones_own(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number, 80, quality=90, seed=0))
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    spec = RuntimesBenchSpec(data=(str(tmp_path),), num_inputs=5)
    images, tokens = calibration_inputs(spec, ImageTransform(PIXELS), Tokenizer(TOKENS))
    assert images.shape == (5, 3, PIXELS.size, PIXELS.size)
    assert len(set(map(tuple, tokens.tolist()))) == 5
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 inputs of .* cannot be read; the first: .*3\.jpg"):
        calibration_inputs(attrs.evolve(spec, num_inputs=6), ImageTransform(PIXELS), Tokenizer(TOKENS))


def test_gates_are_those_of_the_precision():
    small = match()
    plain = small.sides[0].module
    noisy = Contender(encode=lambda inputs: plain(inputs) * torch.linspace(0.9, 1.1, 12), most=2)
    with torch.no_grad():
        assert gate("eager", noisy, small).endswith("below 0.99999")
        assert gate("openvino_int8", noisy, small) == ""
        assert gate("eager", Contender(encode=plain, most=2), small) == ""


def test_large_batches_go_whole_or_by_fours():
    assert [at_once(size) for size in (1, 4, 6, 8, 32)] == [[1], [4], [6], [8, 4], [32, 4]]


def test_the_fastest_variant_is_found_and_what_is_far_behind_is_called_no_more():
    calls = dict.fromkeys(("slow", "quick"), 0)

    def contender(name, seconds):
        def encode(inputs):
            calls[name] += 1
            time.sleep(seconds)
            return inputs

        return Contender(encode=encode, most=1, layout=name)

    variants = [contender("slow", 0.2), contender("quick", 0.0)]
    assert fastest(variants, torch.zeros(1), rounds=3).layout == "quick"
    assert calls["slow"] == 3  # to warm up, and a turn of two calls


def test_every_layout_is_tried_but_where_one_was_chosen():
    assert variants_of("text", 1, None) == [("", 1)]
    layouts = ("contiguous", "channels innermost")
    assert variants_of("image", 8, None) == [(layout, most) for layout in layouts for most in (8, 4)]
    chosen = Contender(encode=torch.abs, most=4, layout="channels innermost")
    assert variants_of("image", 8, chosen) == [("channels innermost", 4)]


def test_texts_are_cut_where_a_form_takes_any_length(tmp_path):
    small = match("text", spec=TRANSFORMERS)
    expected = small.sides[0].module(small.inputs)
    release, ours = (next(one.contenders("eager", small.inputs, small.inputs, tmp_path)) for one in small.sides)
    assert torch.allclose(ours.encode(small.inputs), expected, atol=1e-5)
    assert torch.allclose(release.encode(small.inputs), expected, atol=1e-5)


@pytest.mark.slow
def test_exact_reading_is_the_rivals():
    data = photo(0, 900, quality=90, seed=0)
    transform = ImageTransform(PIXELS)
    found = {side: read(data) for side, read in readers_of(transform).items()}
    exact, reduced = (transform.normalize(found[side]) for side in ("ours", REDUCED))
    assert torch.equal(exact, found["release"])
    assert 0 < (reduced - found["release"]).abs().mean() < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_openvino_gets_our_pixels_as_they_were_decoded(tmp_path):
    transform = ImageTransform(PIXELS)
    files = tuple(photo(number, 100, quality=90, seed=0) for number in range(2))
    small = match(files=files, readers=readers_of(transform))
    for form in ("eager", "openvino"):
        *_, ours = (next(one.contenders(form, small.inputs, small.inputs, tmp_path)) for one in small.sides)
        assert ours.takes_pixels == (form == "openvino")
    rows = compare(attrs.evolve(small, transform=transform), attrs.evolve(SMALL, forms=("openvino",)), tmp_path)
    cosines = [row.values["cosine"].number for row in rows if row.case["form"] != "best"]
    assert len(cosines) == 5
    assert min(cosines) > 0.999


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("tower", "spec"), [("image", CONVOLUTIONAL), ("text", TRANSFORMERS)])
def test_every_form_of_a_small_tower(tmp_path, tower, spec):
    rows = list(compare(match(tower, spec=spec, batch_size=6), attrs.evolve(SMALL, forms=FORMS), tmp_path))
    assert not [row.failure for row in rows if row.failure]
    for row in rows[:-1]:
        assert row.values["cosine"].number > (0.9 if row.case["form"].endswith(("int8", "tuned")) else 0.999)
