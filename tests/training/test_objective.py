"""The towers in pieces and with recomputation: the loss and its gradient are those of the whole."""

import copy
import weakref

import attrs
import pytest
import torch

from mobileclip.data import RangeAugmentSpec
from mobileclip.encoders import TextTransformerSpec, ViTSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.training import ImageTextObjective, Memory, World, decay_groups
from mobileclip.training.cpu import fuse_for_cpu
from tests.errors import fails
from tests.training.runs import MODEL, batch_of, image_of, new_model, training_spec

# PyTorch's own, of what it does where it compiles a function with gradients of its own.
INSTANTIATED = pytest.mark.filterwarnings("ignore:.*autograd.* should not be instantiated:DeprecationWarning")
# And of what it asks of every input.
ASKED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
# Without batch norm, which sees one piece at a time, pieces make no difference but rounding.
SIZE = {"width": 32, "depth": 2, "num_heads": 2, "embedding_dim": 24}
TRANSFORMERS = attrs.evolve(
    MODEL,
    image=ViTSpec(**SIZE, patch_size=4, stem="patch", input=ImageInput(size=16)),
    text=TextTransformerSpec(**SIZE, input=TextInput(context_length=6, vocab_size=40)),
)


def gradients(model, **changes):
    objective = ImageTextObjective(training_spec(9, **changes), model=copy.deepcopy(model), world=World())
    batch = batch_of(0)
    contrastive, distillation, total = objective(attrs.evolve(batch, image=image_of(batch).to(model.logit_scale.dtype)))
    total.backward()
    assert total.item() == pytest.approx(contrastive.item() + distillation.item())
    return total.item(), {name: p.grad for name, p in objective.named_parameters()}, objective.model.state_dict()


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_pieces_make_no_difference(size):
    model = TRANSFORMERS.build().double()
    whole, pieces = gradients(model), gradients(model, memory=Memory(micro_batch=size))
    assert pieces[0] == pytest.approx(whole[0], rel=1e-12)
    torch.testing.assert_close(pieces[1], whole[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("again", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize("range_augment", [None, RangeAugmentSpec()], ids=["", "augmented"])
def test_one_piece_at_a_time_is_held_in_floats(again, range_augment):
    """The others wait as pixels, in the forward pass and in the backward pass."""
    spec = training_spec(9, memory=Memory(micro_batch=3, recompute=again), range_augment=range_augment)
    objective = ImageTextObjective(spec, model=TRANSFORMERS.build(), world=World())
    seen, sizes = [], []

    def watch(_, inputs):
        assert inputs[0].dtype == torch.float32
        assert not any(image() is not None for image in seen)
        seen.append(weakref.ref(inputs[0]))
        sizes.append(len(inputs[0]))

    objective.model.image_encoder.register_forward_pre_hook(watch)
    objective(batch_of(0))[-1].backward()
    assert sorted(sizes[:3]) == sorted(sizes[3:]) == [2, 3, 3]


def test_batch_norms_count_every_piece_once():
    model = new_model()
    _, _, whole = gradients(model)
    _, _, pieces = gradients(model, memory=Memory(micro_batch=4))
    counts = [name for name in whole if name.endswith("num_batches_tracked") and name.startswith("image_encoder")]
    assert len(counts) > 10
    assert all(whole[name] == 1 and pieces[name] == 2 for name in counts)
    by_hand = fuse_for_cpu(copy.deepcopy(model).train())
    for part in image_of(batch_of(0)).split(4):
        by_hand.encode_image(part)
    name = next(name for name in whole if name.endswith("running_mean"))
    torch.testing.assert_close(pieces[name], by_hand.state_dict()[name], rtol=0, atol=0)


def test_recomputing_activations_changes_no_bit():
    model = new_model()
    kept, again = gradients(model), gradients(model, memory=Memory(recompute=True))
    assert again[0] == kept[0]
    torch.testing.assert_close(again[1:], kept[1:], rtol=0, atol=0)
    both = gradients(model, memory=Memory(micro_batch=4, recompute=True))
    torch.testing.assert_close(both[1:], gradients(model, memory=Memory(micro_batch=4))[1:], rtol=0, atol=0)


def augmented_gradients(model, **changes):
    """Return the loss and its gradients, those of RangeAugment's ranges too, with what is drawn after one seed."""
    spec = training_spec(9, range_augment=RangeAugmentSpec(), **changes)
    objective = ImageTextObjective(spec, model=copy.deepcopy(model), world=World())
    torch.manual_seed(5)
    total = objective(batch_of(0), progress=0.5)[-1]
    total.backward()
    return total.item(), {name: parameter.grad for name, parameter in objective.named_parameters()}


SCRIPTED = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
WAYS = [(1, None), (3, None), (100, None)]
WAYS += [pytest.param(4, how, marks=[pytest.mark.slow, INSTANTIATED, ASKED, SCRIPTED]) for how in ("towers", "step")]


@pytest.mark.parametrize("again", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize(("size", "compiled"), WAYS)
def test_range_augment_in_pieces_is_that_of_the_whole_batch(size, compiled, again):
    """Images change as in the whole batch, in both passes, and the term is the mean over all of them."""
    model = TRANSFORMERS.build()
    loss, whole = augmented_gradients(model)
    torch._dynamo.reset()
    found, pieces = augmented_gradients(model, memory=Memory(micro_batch=size, recompute=again), compile=compiled)
    ranges = {name: gradient for name, gradient in whole.items() if name.startswith("range_augment")}
    assert len(ranges) == 3
    assert found == pytest.approx(loss, rel=1e-5)
    assert max(relative_error(pieces, whole), relative_error(pieces, ranges)) < 1e-5


def test_range_augment_changes_the_student_s_images_and_learns_its_ranges():
    spec = training_spec(9, range_augment=RangeAugmentSpec())
    objective = ImageTextObjective(spec, model=new_model(), world=World())
    contrastive, distillation, total = objective(batch_of(0), progress=0.5)
    plain = ImageTextObjective(training_spec(9), model=new_model(), world=World())(batch_of(0))
    assert total.item() > contrastive.item() + distillation.item()
    assert contrastive.item() != plain[0].item()
    total.backward()
    ranges = dict(objective.range_augment.named_parameters())
    assert ranges
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in ranges.values())
    decayed, kept = decay_groups(objective)
    assert not any(name.startswith("range_augment") for name in decayed)
    assert {f"range_augment.{name}" for name in ranges} <= kept.keys()


@pytest.mark.slow
@INSTANTIATED
@SCRIPTED
@ASKED
@pytest.mark.parametrize("augmented", [False, True], ids=["one graph", "augmented"])
def test_a_step_is_not_compiled_anew_for_a_batch(augmented):
    """Neither keys nor progress are a part of it, nor what is drawn."""
    augmenting = {"range_augment": RangeAugmentSpec(), "compile": "step"}
    changes = augmenting if augmented else {"memory": Memory(recompute=True)}
    objective = ImageTextObjective(training_spec(9, **changes), model=TRANSFORMERS.build(), world=World())
    torch._dynamo.reset()
    compiled = torch.compile(objective.forward, fullgraph=not augmented, backend="eager")
    for step in range(3):
        compiled(batch_of(step), step / 9)  # that progress is another number is seen at the second one
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3, 9):
            assert compiled(batch_of(step), step / 9)[-1].isfinite()


@pytest.mark.slow
@INSTANTIATED
@SCRIPTED
@pytest.mark.parametrize("again", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize("compiled", ["towers", "step"])
def test_what_is_compiled_trains_alike(compiled, again):
    model = new_model()
    plain, other = gradients(model), gradients(model, compile=compiled, memory=Memory(recompute=again))
    assert other[0] == pytest.approx(plain[0], rel=1e-5)
    assert relative_error(other[1], plain[1]) < 1e-5
    assert other[2].keys() == plain[2].keys()


@SCRIPTED
@pytest.mark.parametrize("compiled", ["towers", "step"])
def test_what_is_to_be_compiled_is(compiled):
    """And so it fails where nothing may be."""
    objective = ImageTextObjective(training_spec(9, compile=compiled), model=TRANSFORMERS.build(), world=World())
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
        objective(batch_of(0))


@pytest.mark.parametrize("compiled", ["towers", "step"])
def test_no_image_text_model_is_compiled_for_several_threads_of_a_cpu(compiled):
    """PyTorch's kernels would write where they should not; one thread makes others."""
    spec, model = training_spec(9, compile=compiled), new_model()
    torch.set_num_threads(2)
    try:
        with fails(ValueError):
            ImageTextObjective(spec, model=model, world=World())
    finally:
        torch.set_num_threads(1)


def relative_error(values, expected):
    """The norm of the difference over the norm."""
    total = torch.nn.utils.get_total_norm
    return total([values[name] - expected[name] for name in expected]) / total(list(expected.values()))
