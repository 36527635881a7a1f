"""A small run for `test_processes`, started by torchrun or alone: writes what it learnt and who took part."""

import sys
from pathlib import Path

import torch
from torch import nn

from generators.config import to_dict
from generators.run import Run, RunConfig


def main(out: Path, resume: bool, stop_at: int) -> None:
    config = RunConfig(steps=6, batch_size=8, log_every=1, checkpoint_every=2, accumulate=2, trackers=())
    run = Run(out, config, {"run": to_dict(config)}, resume)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    model = run.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.track(model=model, optimizer=optimizer)
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
        if step + 1 == stop_at:
            raise KeyboardInterrupt
    state = run.unwrap(model).state_dict()
    torch.save({"state": state, "world": run.world, "wrapper": type(model).__name__}, out / f"rank-{run.rank}.pt")
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3]))
