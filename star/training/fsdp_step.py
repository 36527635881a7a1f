"""Seconds of a training step in pieces (FSDP2) in a world of as many processes as were started, one included.

python -m torch.distributed.run --standalone --nproc_per_node 1 -m star.training.fsdp_step d16-256 [--batch 8]

Runs keep a network whole where they are alone (generators/training/fsdp.py); here it is cut all the same, so that one
device shows what gathering and letting go cost. Prints JSON in the first process.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from statistics import median

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from star.generators.measuring import now
from star.model.transformer import NextScaleTransformer
from star.training.step_versus import WARM_UP, RepeatedStep, StepTask


def cut(network: NextScaleTransformer) -> None:
    """Block by block, then what is left, over all processes."""
    device = network.start_position.device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def seconds(task: StepTask, repetitions: int) -> float:
    """Of a step, the median. A process group must be there. Raises RuntimeError if the network was not cut."""
    step = RepeatedStep(task, "ours", cut)
    if not isinstance(step.network, FSDPModule):
        raise RuntimeError("the network is still in one piece, expected FSDP2's")
    times = []
    for _ in range(WARM_UP + repetitions):
        start = now(task.device)
        step()
        times.append(now(task.device) - start)
    return median(times[WARM_UP:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints {"seconds": ..., "processes": ...}."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("shape")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args(arguments)
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    device = torch.device("cuda", dist.get_rank()) if args.device == "cuda" else torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    found = seconds(StepTask.of_shape(args.shape, batch=args.batch, device=device), args.repetitions)
    if dist.get_rank() == 0:
        print(json.dumps({"seconds": found, "processes": dist.get_world_size()}), flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
