"""Every form that weights come in, by one table: what was saved is what is loaded, to the bit."""

import copy
from functools import cache
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import save_file

from mobileclip import reparameterize
from mobileclip.blocks import image_encoders, models, text_encoders
from mobileclip.encoders import CheckpointError, ClassifierSpec, load_backbone, load_model, save_model
from mobileclip.encoders.checkpoints import read_checkpoint
from tests.encoders.small import IMAGE, MCT, SMALL, SMALL_MCT, SMALL_VIT, TEXT, VIT, embeddings, randomised
from tests.errors import fails

BARE, BARE_VIT = IMAGE.without_projection(), VIT.without_projection()
CLASSIFIER = ClassifierSpec(image=BARE, num_classes=5)
MAPS = Path("/proc/self/maps")
CAUSAL = attrs.evolve(SMALL, text=attrs.evolve(TEXT, causal=True))


@cache
def built(spec):
    """The one model of a spec, not to be changed."""
    return randomised(spec)


@cache
def state(spec, form="training"):
    """The tensors of it by our names, in a form."""
    return (reparameterize(built(spec)) if form == "folded" else built(spec)).state_dict()


def foreign(spec, layout):
    """The tensors of a model by a layout's names."""
    from mobileclip.encoders.checkpoints import layouts

    own, found = state(spec), {}
    for name, entry in layouts[layout].entries(spec, "training").items():
        found[entry.name] = entry.reshape.to_layout(own[name]).contiguous() if entry.reshape else own[name]
    return found


def behind(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def compiled(spec, *parts):
    """A model that is compiled, or whose parts are."""
    model = copy.deepcopy(built(spec))
    for part in parts:
        setattr(model, part, torch.compile(getattr(model, part), backend="eager"))
    return model if parts else torch.compile(model, backend="eager")


# What a file holds, and the model that is named when it is loaded.
FORMS = {
    "whole": (lambda: state(SMALL), SMALL),
    "whole, of a ViT": (lambda: state(SMALL_VIT), SMALL_VIT),
    "whole, of an MCt": (lambda: state(SMALL_MCT), SMALL_MCT),
    "image tower": (lambda: state(IMAGE), IMAGE),
    "image tower, a ViT": (lambda: state(VIT), VIT),
    "text tower": (lambda: state(TEXT), TEXT),
    "text tower, an MCt": (lambda: state(MCT), MCT),
    "text tower, as a model calls it": (lambda: behind("text_encoder.", state(TEXT)), TEXT),
    "backbone": (lambda: state(BARE), BARE),
    "classifier": (lambda: state(CLASSIFIER), CLASSIFIER),
    "module.": (lambda: behind("module.", state(SMALL)), SMALL),
    "model.": (lambda: behind("model.", state(SMALL)), SMALL),
    "_orig_mod.": (lambda: behind("_orig_mod.", state(SMALL)), SMALL),
    "module._orig_mod.": (lambda: behind("module._orig_mod.", state(SMALL)), SMALL),
    "compiled": (lambda: compiled(SMALL).state_dict(), SMALL),
    "with a compiled tower": (lambda: compiled(SMALL, "text_encoder").state_dict(), SMALL),
    "official": (lambda: foreign(SMALL_MCT, "official"), SMALL_MCT),
    "official, module.": (lambda: behind("module.", foreign(SMALL, "official")), SMALL),
    "open_clip, _orig_mod.": (lambda: behind("_orig_mod.", foreign(SMALL, "open_clip")), SMALL),
    "timm, num_classes=0": (lambda: foreign(BARE, "timm"), BARE),
    "timm, model.": (lambda: behind("model.", foreign(IMAGE, "timm")), IMAGE),
    "timm, a classifier": (lambda: foreign(CLASSIFIER, "timm"), CLASSIFIER),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("form", FORMS)
def test_it_loads_to_the_bit(form, tmp_path):
    """What a file is called and where its numbers stay is asked of other tests in the other pairs."""
    make, spec = FORMS[form]
    tensors = {name: tensor.clone().contiguous() for name, tensor in make().items()}
    for file, save, mmap in (("m.pt", torch.save, False), ("m.safetensors", save_file, True)):
        save(tensors, tmp_path / file)
        loaded = load_model(tmp_path / file, spec, fold=False, mmap=mmap)
        assert loaded.spec == spec
        same(loaded.state_dict(), state(spec))


def moved(weights):
    return {name: one + 1 if one.is_floating_point() else one for name, one in weights.items()}


def wrapped_blocks(weights, segment):
    """Names as they are where every block of a tower is wrapped."""
    return {name.replace("blocks.", f"blocks.{segment}"): one for name, one in weights.items()}


KEPT_BY_SCRIPTS = {
    "alone": lambda own: own,
    "model": lambda own: {"model": own, "epoch": 3},
    "state_dict": lambda own: {"state_dict": own, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "ema": lambda own: {"ema": own, "step": 7},
    "ema in ema": lambda own: {"ema": {"state_dict": own}},
    "an average beside weights": lambda own: {"model": moved(own), "ema": own, "epoch": 3},
    "an average by another name": lambda own: {"state_dict": moved(own), "state_dict_ema": own},
    "an average with its decay": lambda own: {"model": moved(own), "model_ema": {"decay": 0.99, "module": own}},
    "an attribute net": lambda own: behind("net.", own),
    "an attribute student": lambda own: behind("student.", own),
    "nested attributes": lambda own: behind("clip.net.", own),
    "a loss beside it": lambda own: {**behind("model.", own), "criterion.logit_bias": torch.zeros(())},
    "AveragedModel": lambda own: {"n_averaged": torch.tensor(7), **behind("module.", own)},
    "FSDP": lambda own: wrapped_blocks(own, "_fsdp_wrapped_module."),
    "checkpoint wrappers": lambda own: wrapped_blocks(own, "_checkpoint_wrapped_module."),
    "no counters": lambda own: {n: one for n, one in own.items() if not n.endswith("num_batches_tracked")},
    "half precision": lambda own: {name: one.half() for name, one in own.items()},
}


@pytest.mark.parametrize("kept", KEPT_BY_SCRIPTS)
def test_what_training_scripts_keep_is_read_from_files_and_from_memory(kept, tmp_path):
    own = state(SMALL)
    written = KEPT_BY_SCRIPTS[kept](own)
    torch.save(written, tmp_path / "archive.pt")
    torch.save(written, tmp_path / "stream.pt", _use_new_zipfile_serialization=False)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if kept == "half precision" else {"rtol": 0, "atol": 0}
    for given in (tmp_path / "archive.pt", tmp_path / "stream.pt", written):
        loaded = load_model(given, SMALL, fold=False).state_dict()
        for name, one in loaded.items():
            if kept != "no counters" or not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(one, own[name], **tolerance)


@pytest.mark.parametrize("form", ["training", "folded"])
@pytest.mark.parametrize("spec", [SMALL, SMALL_MCT, IMAGE, BARE, MCT, CLASSIFIER, VIT])
def test_a_state_is_known_by_its_form(spec, form, tmp_path):
    """And by our names before foreign ones: half of a ViT's are timm's too."""
    torch.save(state(spec, form), tmp_path / "m.pt")
    stored = read_checkpoint(tmp_path / "m.pt", spec)
    assert (stored.spec, stored.form, stored.layout) == (spec, form, "mobileclip")
    same(load_model(tmp_path / "m.pt", spec).state_dict(), state(spec, "folded"))


@pytest.mark.parametrize("form", ["training", "folded"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_of_a_whole_state(tower, form, tmp_path):
    torch.save(state(SMALL, form), tmp_path / "m.pt")
    part, prefix = getattr(SMALL, tower), f"{tower}_encoder."
    expected = {k.removeprefix(prefix): v for k, v in state(SMALL, form).items() if k.startswith(prefix)}
    for asked, options in ((SMALL, {"tower": tower}), (part, {})):
        stored = read_checkpoint(tmp_path / "m.pt", asked, **options)
        assert stored.spec == part
        same(stored.tensors, expected)


@pytest.mark.parametrize(("spec", "bare"), [(IMAGE, BARE), (VIT, BARE_VIT)])
@pytest.mark.parametrize("layout", ["mobileclip", "timm"])
def test_a_tower_whose_projection_was_left_out_is_a_backbone(layout, spec, bare, tmp_path):
    timms = attrs.evolve(spec, stem_padding=0, norm_eps=1e-6) if layout == "timm" and spec is VIT else spec
    bare = timms.without_projection() if layout == "timm" else bare
    torch.save(state(bare) if layout == "mobileclip" else foreign(bare, "timm"), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", timms, fold=False)
    assert loaded.spec == bare
    classifier = ClassifierSpec(image=bare, num_classes=3).build()
    load_backbone(classifier, tmp_path / "m.pt", timms)
    same(classifier.image_encoder.state_dict(), state(bare))


@pytest.mark.parametrize("parts", [(), ("image_encoder",), ("image_encoder", "text_encoder")])
def test_a_compiled_model_is_saved_as_it_is(parts, tmp_path):
    model = compiled(SMALL, *parts)
    for layout in ("mobileclip", "official"):
        save_model(model, tmp_path / "m.safetensors", layout=layout)
        loaded = load_model(tmp_path / "m.safetensors", fold=False)
        assert loaded.spec == SMALL
        same(loaded.state_dict(), state(SMALL))


def test_a_step_of_a_run(tmp_path):
    from mobileclip.training import train
    from tests.training.runs import Batches, training_spec

    spec = attrs.evolve(
        SMALL,
        image=attrs.evolve(IMAGE, input=attrs.evolve(IMAGE.input, size=16)),
        text=attrs.evolve(TEXT, input=attrs.evolve(TEXT.input, context_length=6, vocab_size=40)),
    )
    result = train(training_spec(3), model=spec.build(), batches=Batches(), output=tmp_path)
    (newest,) = sorted(tmp_path.rglob("step-*.safetensors"))[-1:]
    for model in (None, spec):
        loaded = load_model(newest, model, fold=False)
        assert loaded.spec == spec
        same(loaded.state_dict(), result.model.state_dict())


def test_where_several_models_fit_a_name_decides_unless_they_share_the_tower(monkeypatch, tmp_path):
    """Heads, causal masks and paddings are not in shapes."""
    torch.save(foreign(CAUSAL, "official"), tmp_path / "official.pt")
    torch.save(state(CAUSAL), tmp_path / "m.pt")
    with monkeypatch.context() as patch:
        patch.setattr(models, "_values", {**models._values, "second": CAUSAL})
        assert load_model(tmp_path / "official.pt", tower="text").spec == CAUSAL.text
    for registry, other in ((models, "mobileclip_s0"), (image_encoders, "mci0"), (text_encoders, "text_mct")):
        monkeypatch.setattr(registry, "_values", {other: registry[other]})
    models._values.update(first=SMALL, second=CAUSAL)
    assert load_model(tmp_path / "m.pt", "second").spec == CAUSAL
    assert load_model(tmp_path / "m.pt", "first").spec == SMALL
    assert load_model(tmp_path / "m.pt", tower="image").spec == IMAGE


@pytest.mark.skipif(not MAPS.exists(), reason="what a process maps is known on Linux alone")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_stay_in_the_file_for_those_who_ask(suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    save_model(built(SMALL), path, layout="mobileclip" if suffix == ".safetensors" else "official")
    own = load_model(path, SMALL, fold=False)
    assert str(path) not in MAPS.read_text(encoding="utf-8")
    view = load_model(path, SMALL, fold=False, mmap=True)
    assert str(path) in MAPS.read_text(encoding="utf-8")
    torch.testing.assert_close(view.state_dict(), own.state_dict(), rtol=0, atol=0)
    # Where weights begin in memory decides the last bit.
    torch.testing.assert_close(embeddings(view), embeddings(own), rtol=0, atol=1e-6)


def test_two_names_of_one_tensor_are_two_tensors_once_loaded(tmp_path):
    tensors = state(SMALL)
    name, other = "text_encoder.layers.0.ffn_norm.weight", "text_encoder.layers.1.ffn_norm.weight"
    torch.save({**tensors, other: tensors[name]}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", SMALL, fold=False)
    with torch.no_grad():
        loaded.get_parameter(name).zero_()
    assert torch.equal(loaded.get_parameter(other), tensors[name])


def test_a_model_without_a_logit_scale_gets_the_cap(tmp_path):
    own = state(SMALL)
    del own["logit_scale"]
    torch.save(own, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", SMALL)
    assert loaded.similarity_scale.item() == pytest.approx(SMALL.max_logit_scale)
    del own[next(name for name in own if name.endswith("weight"))]
    with fails(CheckpointError, "1"):
        load_model(own, SMALL)
