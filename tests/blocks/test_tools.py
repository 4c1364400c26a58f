"""PyTorch's own tools, and those that everyone uses with it, work on every block and every tower."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm

from mobileclip import reparameterize
from mobileclip.blocks import BlockSequence, set_attention_backend
from mobileclip.reparam import BATCH_NORMS
from tests.blocks.contract import CASES, CONVOLUTIONAL
from tests.blocks.filling import filled, noise
from tests.encoders.towers import SMALL, inputs

MODULES = {name: case.make for name, case in CASES.items()} | {
    f"tower_{name}": spec.build for name, spec in SMALL.items()
}
# A tower of each kind; the compiler takes long. An MCt has the layers of a text transformer between its own.
COMPILED = ("tower_mci",)


def examples(name, *, batch=2, dtype=torch.float64):
    """Inputs of a block or tower."""
    if name in CASES:
        return CASES[name].inputs(batch=batch, dtype=dtype)
    given = inputs(SMALL[name.removeprefix("tower_")], dtype=dtype)[:batch]
    return (given,)


@pytest.fixture(params=MODULES)
def name(request):
    return request.param


@pytest.fixture
def module(name):
    return filled(MODULES[name]()).double()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_forward_hook_fires_once(module, name, training):
    module.train(training)
    parts = [part for part in module.modules() if not isinstance(part, nn.ModuleList)]
    fired = []
    for part in parts:
        part.register_forward_hook(lambda module, *_: fired.append(module))
    module(*examples(name))
    assert sorted(map(id, fired)) == sorted(map(id, parts))


def scalar(module, inputs):
    return module(*inputs).square().sum()


def test_gradients_by_torch_func_and_for_each_sample(module, name):
    """`torch.func.grad` of the parameters, and `vmap` of it over the samples, as autograd has them."""
    set_attention_backend(module, "reference")  # PyTorch's fused kernels on a CPU cannot be differentiated twice
    given, parameters, buffers = examples(name), dict(module.named_parameters()), dict(module.named_buffers())

    def loss(parameters, *sample):
        batches = tuple(one[None] for one in sample)
        return torch.func.functional_call(module, (parameters, buffers), batches).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *[0] * len(given)))(parameters, *given)
    for row in range(2):
        alone = scalar(module, [one[row : row + 1] for one in given])
        expected = torch.autograd.grad(alone, list(parameters.values())) if parameters else ()
        for (key, gradient), wanted in zip(each.items(), expected, strict=True):
            wanted = torch.zeros_like(gradient[row]) if wanted is None else wanted  # noqa: PLW2901
            torch.testing.assert_close(gradient[row], wanted, msg=key)


def test_double_backward_in_evaluation(module, name):
    set_attention_backend(module, "reference")
    given = examples(name)
    leaf = given[0].requires_grad_() if given[0].is_floating_point() else next(module.parameters())
    (first,) = torch.autograd.grad(scalar(module, given), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    assert second.isfinite().all()
    step = noise(*leaf.shape, seed=3, dtype=torch.float64) * 1e-6
    with torch.no_grad():
        moved = []
        for sign in (1, -1):
            leaf += sign * step
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(scalar(module, given), leaf)
            moved.append(gradient.square().sum())
            leaf -= sign * step
    torch.testing.assert_close((second * step).sum(), (moved[0] - moved[1]) / 2, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "training", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["training", "evaluation"]
)
@pytest.mark.parametrize(
    "name", [name if name in COMPILED else pytest.param(name, marks=pytest.mark.slow) for name in MODULES]
)
def test_compiled_in_one_graph(module, name, training):
    module, given = module.float().train(training), examples(name, dtype=torch.float32)
    torch.manual_seed(0)
    expected = copy.deepcopy(module)(*given)
    torch.compiler.reset()
    torch.manual_seed(0)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), expected, rtol=1e-4, atol=1e-5)


TRAINED_FORM = pytest.param("training_form", marks=pytest.mark.slow)  # what people export and quantise is folded


class Together(nn.Module):
    """Blocks that see the same maps, or as many of their channels as they have, for one graph of all."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, x):
        return {name: block(x[:, : CASES[name].input[1]]) for name, block in self.blocks.items()}


@pytest.mark.parametrize("form", [TRAINED_FORM, pytest.param("folded", marks=pytest.mark.slow)])
def test_exported_with_any_sides(form):
    module = Together({name: filled(MODULES[name]()) for name in CONVOLUTIONAL}).eval()
    module = reparameterize(module) if form == "folded" else module
    dim = max(CASES[name].input[1] for name in CONVOLUTIONAL)
    sides = {2: torch.export.Dim("height", min=4, max=64), 3: torch.export.Dim("width", min=4, max=64)}
    exported = torch.export.export(module, (noise(2, dim, 8, 12),), dynamic_shapes=(sides,)).module()
    for height, width in ((8, 12), (17, 9), (32, 64)):
        x = noise(2, dim, height, width)
        expected = module(x)
        for name, y in exported(x).items():
            torch.testing.assert_close(y, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def layers(module, kinds=(nn.Linear, nn.Conv2d)):
    return [part for part in module.modules() if isinstance(part, kinds)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_pruned_and_parametrised_weights_are_those_that_compute(module, name, training):
    """Each in front of every call sets a weight; one that is read without a call would be an old one."""
    if not layers(module):
        pytest.skip("it has no weights of layers")
    module.train(training)
    plain, given = copy.deepcopy(module), examples(name)
    for part, twin in zip(layers(module), layers(plain), strict=True):
        prune.l1_unstructured(part, "weight", amount=0.3)
        with torch.no_grad():
            twin.weight.copy_(part.weight_orig * part.weight_mask)
    for _ in range(2):
        torch.manual_seed(0)
        y = module(*given)
        torch.manual_seed(0)
        torch.testing.assert_close(y, plain(*given))
        y.square().sum().backward()
        with torch.no_grad():
            for part, twin in zip(layers(module), layers(plain), strict=True):
                part.weight_orig.mul_(1.5)
                twin.weight.mul_(1.5)


def test_weight_norm_trains_and_folds(module, name):
    if not layers(module):
        pytest.skip("it has no weights of layers")
    plain, given = copy.deepcopy(module), examples(name)
    for part in layers(module):
        weight_norm(part)
        assert parametrize.is_parametrized(part)
    torch.testing.assert_close(module(*given), plain(*given))
    for _ in range(2):
        module.zero_grad()
        scalar(module.train(), given).backward()
    module.eval()
    torch.testing.assert_close(reparameterize(module)(*given), module(*given), rtol=1e-8, atol=1e-8)


def test_built_without_memory_and_filled_later_and_synchronised_norms_fold(module, name):
    with torch.device("meta"):
        empty = MODULES[name]()
    assert all(tensor.device.type == "meta" for tensor in empty.state_dict().values())
    empty = empty.to_empty(device="cpu").double().eval()
    empty.load_state_dict(module.state_dict())
    given = examples(name)
    expected = module(*given)
    assert torch.equal(empty(*given), expected)
    folded = reparameterize(nn.SyncBatchNorm.convert_sync_batchnorm(empty))
    assert not any(isinstance(part, BATCH_NORMS) for part in folded.modules())
    torch.testing.assert_close(folded(*given), expected, rtol=1e-9, atol=1e-9)


TOWERS = [name for name in MODULES if name.startswith("tower_")]


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("form", [TRAINED_FORM, "folded"])
def test_int8_weights_by_torchao(name, form):
    from torchao import quantization

    module = filled(MODULES[name]())
    module = reparameterize(module) if form == "folded" else module
    given = examples(name, dtype=torch.float32)
    expected = module(*given)
    for config in (quantization.Int8WeightOnlyConfig(), quantization.Int8DynamicActivationInt8WeightConfig()):
        quantised = copy.deepcopy(module)
        quantization.quantize_(quantised, config)
        y = quantised(*given)
        assert torch.nn.functional.cosine_similarity(y, expected).min() > 0.98
        assert not torch.equal(y, expected)


@pytest.mark.parametrize("name", TOWERS)
def test_adapters_by_peft(name):
    import peft

    module, given = filled(MODULES[name]()), examples(name, dtype=torch.float32)
    expected = module(*given)
    names = [key for key, part in module.named_modules() if isinstance(part, nn.Linear)]
    adapted = peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    assert not torch.allclose(adapted(*given), expected)
    scalar(adapted.train(), given).backward()
    trained = [key for key, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert trained
    assert all("lora" in key for key in trained)
    adapted.eval()
    y = adapted(*given)
    torch.testing.assert_close(adapted.merge_and_unload()(*given), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", [name if name in COMPILED else pytest.param(name, marks=pytest.mark.slow) for name in TOWERS]
)
@torch.no_grad()
def test_a_hook_or_a_compiled_block_at_the_end_is_used_in_evaluation(name):
    module, given = filled(MODULES[name]()), examples(name, dtype=torch.float32)
    sequences = [part for part in module.modules() if isinstance(part, BlockSequence)]
    expected, fired = module(*given), []
    sequences[-1][-1].register_forward_hook(lambda *_: fired.append(True))
    sequences[-1][-1].compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(module(*given), expected, rtol=1e-4, atol=1e-5)
    assert fired == [True]
