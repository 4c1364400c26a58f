"""Training on a GPU: the step of the CPU, bfloat16, compiled steps, and runs that are killed and go on."""

import attrs
import pytest
import torch

from mobileclip.data import RangeAugmentSpec
from mobileclip.training import ImageTextObjective, Memory, World, read_metrics, train
from tests.training.runs import Batches, KilledError, batch_of, image_of, new_model, training_spec
from tests.training.test_objective import INSTANTIATED, TRANSFORMERS, relative_error

pytestmark = pytest.mark.gpu


def losses_of(output):
    return [line["loss"] for line in read_metrics(output / "metrics.jsonl")]


@pytest.mark.parametrize(
    "changes", [{}, {"memory": Memory(micro_batch=3)}, {"memory": Memory(recompute=True)}], ids=str
)
@pytest.mark.parametrize("make", [new_model, TRANSFORMERS.build], ids=["convolutions", "transformers"])
def test_a_step_is_that_of_the_cpu(make, changes, gpu):
    results = []
    for device in (torch.device("cpu"), gpu):
        torch.manual_seed(0)
        spec = training_spec(9, **changes)
        objective = ImageTextObjective(spec, model=make().double(), world=World(device=device))
        batch = attrs.evolve(batch_of(0), image=image_of(batch_of(0)).double()).to(device)
        total = objective(batch)[-1]
        total.backward()
        found = {name: parameter.grad.cpu() for name, parameter in objective.named_parameters()}
        results.append((total.item(), found))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert relative_error(results[1][1], results[0][1]) < 1e-5


@INSTANTIATED
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("compiled", [None, "step"])
def test_the_loss_falls_in_bfloat16(compiled, tmp_path, gpu):
    torch._dynamo.reset()
    spec = training_spec(60, peak=5e-3, precision="bfloat16", compile=compiled, channels_last=gpu.type == "cuda")
    train(spec, model=new_model(), batches=Batches(), output=tmp_path, world=World(device=gpu))
    losses = losses_of(tmp_path)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "bfloat16"}, {"range_augment": RangeAugmentSpec(), "memory": Memory(micro_batch=4)}],
    ids=["plain", "bfloat16", "random"],
)
def test_a_killed_run_goes_on(changes, tmp_path, gpu):
    spec, world = training_spec(8, **changes), World(device=gpu)
    train(spec, model=new_model(), batches=Batches(), output=tmp_path / "whole", world=world)
    parts = tmp_path / "parts"
    with pytest.raises(KilledError):
        train(spec, model=new_model(), batches=Batches(stop=5, killed=True), output=parts, world=world)
    assert train(spec, model=new_model(), batches=Batches(), output=parts, world=world).num_steps == 5
    assert losses_of(parts) == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-2)
