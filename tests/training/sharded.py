"""What each of two processes does: towers and dual encoders whose parameters are shared out by `fully_shard`."""

from __future__ import annotations

import copy
import os

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mobileclip.blocks import BlockSequence
from mobileclip.losses import ContrastiveLoss
from tests.blocks.filling import filled
from tests.encoders import small
from tests.encoders.towers import SMALL, inputs


def sharded(model: nn.Module) -> nn.Module:
    """Share out every block of a tower, then what is left."""
    mesh = init_device_mesh("cpu", (2,))
    for sequence in [module for module in model.modules() if isinstance(module, BlockSequence)]:
        for block in sequence:
            fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def start(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)


def step(model: nn.Module, rate: float = 0.1) -> dict[str, torch.Tensor]:
    """Return what a model gives, and its weights and gradients after one step of a contrastive loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    image, text, scale = model(*small.inputs(small.SMALL_MCT, batch=3))
    ContrastiveLoss()(image=image, text=text, logit_scale=scale).total.backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    optimizer.step()
    found = {"image": image, "text": text, "scale": scale, **gradients, **dict(model.named_parameters())}
    return {name: (value.full_tensor() if hasattr(value, "full_tensor") else value) for name, value in found.items()}


def step_of_dual_encoders(rank: int, folder: str) -> None:
    """Save what a step of a sharded dual encoder gives beside that of a whole one."""
    start(rank, folder)
    whole = small.randomised(small.SMALL_MCT).train()
    parts = sharded(copy.deepcopy(whole))
    torch.save({"parts": step(parts), "whole": step(whole)}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def compare(rank: int, folder: str) -> None:
    """Save how far sharded towers' embeddings and gradients are from those of whole ones."""
    start(rank, folder)
    results = {}
    for name, spec in SMALL.items():
        whole = filled(spec.build())
        parts = sharded(copy.deepcopy(whole))
        given = inputs(spec)
        for training in (False, True):
            expected, y = whole.train(training)(given), parts.train(training)(given)
            results[name, "training" if training else "evaluation"] = float((y - expected).detach().abs().max())
        expected.square().sum().backward()
        y.square().sum().backward()
        gradients = {key: parameter.grad.full_tensor() for key, parameter in parts.named_parameters()}
        wanted = {key: parameter.grad for key, parameter in whole.named_parameters()}
        results[name, "gradients"] = max(
            float((gradients[key] - wanted[key]).norm() / (wanted[key].norm() + 1e-6)) for key in wanted
        )
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
