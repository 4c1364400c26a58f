"""What every registered loss keeps: its formula, its gradients, copies, files, precisions, compilation.

That several processes are as one with the whole batch is in `tiled/test_collectives.py`.
"""

from __future__ import annotations

import math
from functools import partial

import attrs
import pytest
import torch
from torch import Tensor
from torch.multiprocessing import start_processes

from mobileclip.losses import LossSpec, LossTerms, dense_loss, losses, tiled as tiles
from mobileclip.testing import check_loss
from tests.errors import fails
from tests.losses.embeddings import SPECS, STUDENT, TEACHER_DIMS, random_batch
from tests.preloaded import preloaded

TERMS = ("contrastive", "distillation", "total")

each_loss = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def evaluate(call, loss: torch.nn.Module, inputs: dict[str, Tensor], scale: float, *terms: str):
    """Return the values of a loss, or of what stands for it, and the gradients of each of some terms."""
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    found = call(**inputs, logit_scale=logit_scale)
    wanted = [value for value in inputs.values() if value.requires_grad] + [logit_scale, *loss.parameters()]
    values = [getattr(found, term) for term in terms]
    return found, [
        torch.autograd.grad(value, wanted, retain_graph=True) if value.requires_grad else () for value in values
    ]


def assert_equal(spec, batch, scale, *, syn=True, tolerance=1e-12):
    inputs = random_batch(spec, batch, syn=syn)
    loss = spec.build().double()
    ours, gradients = evaluate(loss, loss, inputs, scale, *TERMS)
    written_out = partial(dense_loss, spec, **dict(loss.named_parameters()))
    dense, expected = evaluate(written_out, loss, inputs, scale, *TERMS)
    for name, found, wanted in zip(TERMS, gradients, expected, strict=True):
        torch.testing.assert_close(getattr(ours, name), getattr(dense, name), rtol=tolerance, atol=tolerance)
        assert len(found) >= 3 or name != "total"
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@each_loss
@pytest.mark.usefixtures("tiled")
class TestAgainstDense:
    @pytest.mark.usefixtures("each_size")
    def test_values_and_gradients(self, spec):
        assert_equal(spec, 7, 9.0)
        assert_equal(spec, 6, 9.0, syn=False)

    @pytest.mark.parametrize("batch", [1, 2, 9])
    def test_batches(self, spec, batch, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 16)
        assert_equal(spec, batch, 20.0)

    @pytest.mark.parametrize("scale", [0.0, 1e-3, 100.0, 5000.0])
    def test_scales(self, spec, scale, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 9)
        assert_equal(spec, 7, scale, tolerance=1e-11 if scale > 1000 else 1e-12)

    def test_gradcheck(self, spec, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 4)
        inputs = random_batch(spec, 3)
        loss = spec.build().double()
        fixed = {name: value for name, value in inputs.items() if not value.requires_grad}

        def terms(image, text, syn_text, logit_scale, *bias):
            found = loss(image=image, text=text, syn_text=syn_text, logit_scale=logit_scale, **fixed)
            return tuple(term for term in (found.contrastive, found.distillation, found.total) if term.requires_grad)

        scale = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
        student = [inputs[name] for name in STUDENT]
        assert torch.autograd.gradcheck(terms, (*student, scale, *loss.parameters()), fast_mode=True)


@each_loss
@pytest.mark.usefixtures("each_backend")
class TestCalls:
    def test_a_loss_keeps_the_contract(self, spec):
        check_loss(spec, teacher_dims=sum(TEACHER_DIMS))

    def test_the_scale_is_a_number_or_a_tensor_of_one(self, spec):
        inputs = random_batch(spec, 4)
        loss = spec.build().double()
        by_tensor = loss(**inputs, logit_scale=torch.tensor([0.1], dtype=torch.float64)).total
        assert loss(**inputs, logit_scale=0.1).total.item() == by_tensor.item()
        scale = torch.tensor([9.0], requires_grad=True)
        spec.build()(**inputs, logit_scale=scale).total.backward()
        assert (scale.grad.shape, scale.grad.dtype) == ((1,), torch.float32)
        with fails(ValueError, "(2,)"):
            loss(**inputs, logit_scale=torch.ones(2))
        sigmoid = spec.initial_logit_bias is not None
        assert list(loss.state_dict()) == (["logit_bias"] if sigmoid else [])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_low_precision_is_widened(self, spec, dtype, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 4 * 9)
        inputs = random_batch(spec, 7, dtype=dtype)
        loss = spec.build()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = loss(**inputs, logit_scale=torch.tensor(50.0, dtype=dtype)).total
        exact = {name: value.detach().double() for name, value in inputs.items()}
        assert total.dtype == torch.float32
        assert total.item() == pytest.approx(spec.build().double()(**exact, logit_scale=50.0).total.item(), rel=1e-5)
        total.backward()
        assert inputs["text"].grad.dtype == dtype

    def test_float32_at_a_scale_of_100(self, spec, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 4 * 100)
        inputs = random_batch(spec, 33, dim=16, dtype=torch.float32)
        loss = spec.build()
        exact = {name: value.detach().double().requires_grad_(value.requires_grad) for name, value in inputs.items()}
        total = loss(**inputs, logit_scale=100.0).total
        expected = dense_loss(spec, **exact, logit_scale=100.0, logit_bias=-3).total
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)
        total.backward()
        expected.backward()
        for name in STUDENT:
            torch.testing.assert_close(inputs[name].grad.double(), exact[name].grad, rtol=1e-3, atol=2e-5)


def test_every_loss_of_images_and_texts_is_here():
    """Of every name that this library registers there is one above that differs in numbers alone."""
    ours = {"contrastive", "reinforced", "sigmoid", "reinforced_sigmoid"}
    assert ours <= set(losses) & set(SPECS)
    assert {type(spec) for spec in SPECS.values()} <= set(losses.values())
    for name in ours:
        given, spec = losses[name](), SPECS[name]
        assert type(given) is type(spec)
        assert (given.needs_teachers, given.term_names) == (spec.needs_teachers, spec.term_names)
        assert (given.initial_logit_bias is None) == (spec.initial_logit_bias is None)


# Whose gradients are compiled too, which takes long: the others call the same operation with other arguments.
WITH_GRADIENTS = [SPECS["contrastive"], SPECS["reinforced, both terms"], SPECS["reinforced_sigmoid, both terms"]]


@each_loss
class TestTransforms:
    # PyTorch's own, of what it does where it compiles a function with gradients of its own.
    @pytest.mark.filterwarnings("ignore:.*autograd.* should not be instantiated:DeprecationWarning")
    def test_compiles_in_one_graph(self, spec):
        torch._dynamo.reset()  # all losses share the code that is compiled, and it counts the versions
        loss = spec.build().double()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager" if spec in WITH_GRADIENTS else "eager")
        inputs = random_batch(spec, 6)
        expected, gradients = evaluate(loss, loss, inputs, 9.0, "total")
        found, others = evaluate(compiled, compiled, inputs, 9.0, "total")
        assert isinstance(found, LossTerms)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(others, gradients)

    def test_functional_gradients(self, spec):
        inputs = random_batch(spec, 5)
        loss = spec.build()
        loss(**inputs, logit_scale=9.0).total.backward()
        fixed = {name: value.detach() for name, value in inputs.items()}

        def total(text: Tensor) -> Tensor:
            return loss(**(fixed | {"text": text}), logit_scale=9.0).total

        torch.testing.assert_close(torch.func.grad(total)(fixed["text"]), inputs["text"].grad)

    def test_second_derivatives_are_the_formulas(self, spec):
        """Refused by the tiles, by whichever way they are asked for, and not silently zero; the dense form has them."""
        inputs = random_batch(spec, 3, syn=False)
        loss = attrs.evolve(spec, backend="tiled").build().double()
        dense = attrs.evolve(spec, backend="dense").build().double()

        def total(call, image: Tensor) -> Tensor:
            return call(**(inputs | {"image": image}), logit_scale=9.0).total

        def penalty(call, image: Tensor) -> Tensor:
            return torch.func.grad(partial(total, call))(image).square().sum()

        assert torch.autograd.gradgradcheck(partial(total, dense), inputs["image"])
        assert torch.func.grad(partial(penalty, dense))(inputs["image"]).abs().max() > 0
        (gradient,) = torch.autograd.grad(total(loss, inputs["image"]), inputs["image"], create_graph=True)
        with fails(RuntimeError, "dense_loss"):
            gradient.sum().backward()
        with fails(RuntimeError, "dense_loss"):
            torch.func.grad(partial(penalty, loss))(inputs["image"])


def twice(loss: torch.nn.Module, batch: int) -> Tensor:
    inputs = random_batch(SPECS["contrastive"], batch, syn=False)
    total = loss(**inputs, logit_scale=9.0).total
    (gradient,) = torch.autograd.grad(total, inputs["image"], create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), inputs["image"])[0]


def test_small_batches_hold_the_matrices_and_either_can_be_asked_for_at_any_size():
    spec = SPECS["contrastive"]
    dense, tiled = (attrs.evolve(spec, backend=backend).build() for backend in ("dense", "tiled"))
    for loss, batch in ((spec.build(), 512), (dense, 513)):
        assert twice(loss, batch).abs().max() > 0
    for loss, batch in ((spec.build(), 513), (tiled, 4)):
        with fails(RuntimeError):
            twice(loss, batch)
    inputs = random_batch(spec, 513, syn=False)
    one, other = (loss(**inputs, logit_scale=9.0).total.item() for loss in (dense, tiled))
    assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.filterwarnings("ignore:.*autograd.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("gradients", [True, False])
def test_what_is_compiled_refuses_the_same_batches(gradients):
    """And leaves PyTorch as it was: an error within a graph does not end its contexts."""
    torch._dynamo.reset()
    compiled = torch.compile(SPECS["contrastive"].build(), fullgraph=True, backend="eager")
    image = torch.eye(3).requires_grad_(gradients)
    with fails(ValueError, "image", "3", "text", "2"):
        compiled(image=image, text=torch.eye(3)[:2], logit_scale=9.0)
    assert torch.is_grad_enabled()


@attrs.frozen(kw_only=True)
class OddSpec(LossSpec):
    """A contrastive loss that breaks the contract in one way."""

    odd: str = ""
    needs_teachers = False

    def build(self, *, process_group=None):  # noqa: ARG002 - which is wrong with several processes
        return OddLoss(self.odd)


class OddLoss(torch.nn.Module):
    def __init__(self, odd):
        super().__init__()
        self.odd = odd
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def __deepcopy__(self, _):
        return self if self.odd == "shared" else OddLoss("more" if self.odd == "copied" else self.odd)

    def forward(self, *, image, text, logit_scale, syn_text=None):
        weights = torch.ones(len(image), dtype=image.dtype)
        text = text if syn_text is None else text + syn_text
        match self.odd:
            case "keywords":
                raise TypeError("got an unexpected keyword argument 'syn_text'")
            case "unread":
                text = text.detach()
            case "alone" if not image.requires_grad:
                text = Grown.apply(text)
            case "grown":
                image = Grown.apply(image)
            case "order":
                weights[0] = 2.0
        logits = logit_scale * image @ text.T + self.bias
        if self.odd == "half":
            logits = logits.exp().log()
        total = -(weights * logits.log_softmax(1).diagonal()).sum() / len(image)
        if self.odd == "more" or (self.odd == "frozen" and not torch.is_grad_enabled()):
            total = total + 1
        none = torch.zeros_like(total)
        told = {
            "tuple": (total, none, total),
            "vector": LossTerms(total, none, total[None]),
            "infinite": LossTerms(total, none + math.inf, total),
            "nameless": LossTerms(none, total, total),
            "sums": LossTerms(total, none, 2 * total),
            "detached": LossTerms(total, none, total.detach()),
        }
        return told.get(self.odd, LossTerms(total, none, total))


class Grown(torch.autograd.Function):
    """The same value, and a gradient that does not grow with what is done to it."""

    @staticmethod
    def forward(_, value):
        return value.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient.sign()


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(losses, "_values", losses._values | {"odd": OddSpec})


@pytest.mark.usefixtures("registered")
class TestContract:
    def test_the_smallest_keeps_it(self):
        check_loss(OddSpec())

    @pytest.mark.parametrize(
        ("odd", "said"),
        [
            ("keywords", "OddSpec cannot process a batch: TypeError: got an unexpected keyword argument 'syn_text'"),
            ("tuple", "OddSpec returned tuple, expected LossTerms"),
            ("vector", "total of OddSpec has the shape (1,)"),
            ("infinite", "distillation of OddSpec is inf"),
            ("nameless", "has no name in `term_names`"),
            ("sums", "the terms of OddSpec do not add up to the total"),
            ("frozen", "under torch.no_grad()"),
            ("detached", "the total of OddSpec does not require a gradient"),
            ("unread", "no finite gradient of OddSpec reaches text"),
            ("grown", "gradients of OddSpec for twice the total: image"),
            ("alone", "gradients of OddSpec if only texts require gradients: text"),
            ("order", "OddSpec for the pairs in a different order: total"),
            ("copied", "copied OddSpec returned a different value"),
            ("shared", "copied OddSpec shares parameters with the original"),
            ("half", "in torch.float16, expected"),
        ],
    )
    def test_each_way_to_break_it_is_told(self, odd, said):
        with fails(AssertionError, said):
            check_loss(OddSpec(odd=odd))

    def test_processes_share_a_batch_or_are_told(self, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        ended = preloaded().call(f"{__name__}:check_in_forked_processes", folder=folder)
        assert ended.status == 0, ended.output


def check_in_forked_processes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_values", losses._values | {"odd": OddSpec})
        patch.setattr("mobileclip.testing.losses.start_processes", partial(start_processes, start_method="fork"))
        check_loss(SPECS["reinforced"], teacher_dims=sum(TEACHER_DIMS), processes=2)
        with fails(AssertionError, "OddSpec", "total"):
            check_loss(OddSpec(), processes=2)
