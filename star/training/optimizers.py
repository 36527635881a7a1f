"""The optimizers of the transformer, or the refiner: AdamW, and Muon for matrices where the config asks for it."""

from typing import Any

import torch
from torch import nn

from star.generators.placement import cpu_flags, multiplies_in_bfloat16
from star.generators.training.muon import Muon, matrix_groups
from star.model.refiner import Refiner
from star.model.transformer import NextScaleTransformer
from star.training.config import TrainConfig

# Weight decay pulls towards zero what should be: matrices. Not biases, nor what is added or multiplied as it stands.
UNDECAYED = ("bias", "log_scale", "start_position", "position_embedding", "level_embedding.weight", "modulation_offset")


def make_optimizers(config: TrainConfig, model: NextScaleTransformer | Refiner) -> dict[str, torch.optim.Optimizer]:
    """AdamW for everything, or beside it Muon for the matrices of the blocks; by the names they are saved under."""
    groups = matrix_groups(model.blocks, config.weight_decay) if config.optimizer == "muon" else []
    matrices = [group | {"lr_scale": config.matrix_lr} for group in groups]
    taken = {id(weight) for group in matrices for weight in group["params"]}
    rest = parameter_groups(model, config.weight_decay)
    for group in rest:
        group["params"] = [weight for weight in group["params"] if id(weight) not in taken]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, fused=True)
    }
    if matrices:
        half = config.run.precision == "bf16" and multiplies_in_bfloat16(cpu_flags())
        optimizers["matrix_optimizer"] = Muon(matrices, lr=config.lr, half=half)
    return optimizers


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW of what is trained: what decays, and what does not (UNDECAYED, all of one dimension)."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        spare = parameter.ndim <= 1 or name.endswith(UNDECAYED)
        if parameter.requires_grad:
            (spared if spare else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
