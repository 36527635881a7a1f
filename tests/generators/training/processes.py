"""A small run for `test_processes`, started by torchrun or alone: writes what it learnt and who took part."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from star.generators.config import to_dict
from star.generators.training.ema import MovingAverage
from star.generators.training.fsdp import local, shard, whole_state
from star.generators.training.run import Run, RunConfig


def main(out: Path, resume: bool, stop_at: int, sharding: Any) -> None:
    config = RunConfig(
        steps=6, batch_size=12, log_every=1, checkpoint_every=2, accumulate=2, trackers=(), sharding=sharding
    )
    run = Run(out, config, {"run": to_dict(config)}, resume)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 1))
    ema = MovingAverage(model, lambda: 0.5)
    if sharding == "fsdp2":
        shard(ema.module, [ema.module[0]], run.device)  # type: ignore[index]
    model = run.distribute(model, [model[0], model[2]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    run.track(model=model, optimizer=optimizer, ema=ema)
    run.restore()
    index = run.first_batch
    for step in run.steps():
        for _ in run.micro_steps(model):
            # Micro-batch i of the whole run, of which each process takes its part.
            whole = torch.randn(run.micro_batch_size * run.world, 6, generator=torch.Generator().manual_seed(index))
            loss = (model(whole[run.rank :: run.world]) - 1).square().mean()
            run.backward(loss)
            run.log({"loss": loss}, images=run.micro_batch_size)
            index += 1
        run.log({"grad_norm": run.clip(model.parameters())})
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(run.unwrap(model))
        if step + 1 == stop_at:
            raise KeyboardInterrupt
    state = whole_state(run.unwrap(model)) | {f"ema.{k}": v for k, v in whole_state(ema.module).items()}
    mine = sum(local(parameter).numel() for parameter in model.parameters())
    report = {"state": state, "world": run.world, "wrapper": type(model).__name__, "parameters": mine}
    torch.save(report, out / f"rank-{run.rank}.pt")
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3]), sys.argv[4])
