"""What `test_distributed.py` starts under torchrun: the gradients of a compiled step, which every process compares."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

from mobileclip.training import ImageTextObjective, Memory, World, process_group
from tests.training.runs import new_model, share_of, training_spec
from tests.training.test_objective import relative_error


def gradients(world: World, **changes) -> dict[str, torch.Tensor]:
    objective = ImageTextObjective(training_spec(9, **changes), model=new_model(), world=world)
    minimised = DistributedDataParallel(objective, process_group=world.group)
    for step in range(2):
        minimised.zero_grad()
        minimised(share_of(world.rank, world.size)(step), step / 9)[-1].backward()
    return {name: parameter.grad for name, parameter in objective.named_parameters()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu") as connected_world:
        plain = gradients(connected_world)
        compiled = gradients(connected_world, compile="step", memory=Memory(recompute=True))
        error = relative_error(compiled, plain)
        assert error < 1e-5, error
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
