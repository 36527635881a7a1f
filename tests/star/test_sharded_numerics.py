"""A network in pieces (FSDP2) computes in bfloat16 what one process computes: two processes, gloo.

Pictures are dealt to the processes, so states and logits of a picture must be those of one process (on a CPU to the
bit), and averaged gradients those of the whole batch but for what bfloat16 rounds in sums over fewer pictures.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.distributed.tensor import DTensor

from star.data.loader.batch import Batch
from star.data.text import TextFeatures
from star.data.tiny import tiny_text_encoder
from star.generators.training.run import RunConfig
from star.model.losses import token_losses
from star.model.transformer import NextScaleTransformer
from star.tiny import CODE_WIDTH, VOCABULARY, tiny_tokenizer, tiny_transformer
from star.training.inputs import Encoder
from star.training.validation import Measured

BATCH, WORDS, WORLD, STEPS, PICTURES = 8, 6, 2, 4, 5
CHANGES: dict[str, dict[str, Any]] = {
    "as the presets": {"attention": "scalewise", "checkpointing": True},
    "head lowered": {"head_float32": False},
}


def network(changes: dict[str, Any]) -> NextScaleTransformer:
    model = tiny_transformer(width=64, heads=4, depth=3, **changes)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # values that bfloat16 rounds, biases and temperatures too
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model.train()


def learn(model: NextScaleTransformer, rank: int, world: int) -> dict[str, Any]:
    """Some steps; the states of every block, logits and gradients of the first, and the losses of all."""
    from star.generators.training.fsdp import whole, whole_state

    states: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _block, _given, result: states.append(result.detach()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, eps=1e-4)
    found: dict[str, Any] = {"losses": []}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        mine = slice(rank, None, world)
        words_BTD = torch.randn(BATCH, WORDS, 32, generator=generator)[mine]
        text = TextFeatures(words_BTD, torch.ones(len(words_BTD), WORDS, dtype=torch.bool), words_BTD[:, 0])
        length = model.schedule.length
        input_BlE = torch.randn(BATCH, length - 1, CODE_WIDTH, generator=generator)[mine]
        codes_BL = torch.randint(VOCABULARY, (BATCH, length), generator=generator)[mine]
        with torch.autocast("cpu", torch.bfloat16):
            logits_BLV = model(input_BlE, text)
            loss = token_losses(logits_BLV, codes_BL).mean()
        if not step:
            found |= {"logits": logits_BLV.detach(), "states": [state.clone() for state in states[:3]]}
        loss.backward()
        if not step:
            found["gradients"] = {
                name: whole(parameter.grad).clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        mean = loss.detach()
        if world > 1:
            dist.all_reduce(mean, dist.ReduceOp.AVG)
        found["losses"].append(mean.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return found | {"learnt": whole_state(model)}


def process(rank: int, folder: str, changes: dict[str, Any]) -> None:
    from star.generators.training.fsdp import shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    model = network(changes)
    shard(model, model.blocks, torch.device("cpu"))
    losses_K = measured(PICTURES if rank == 0 else 0).losses(model, run(WORLD))
    assert all(isinstance(weight, DTensor) for weight in model.parameters()), "a piece was left whole"
    torch.save(learn(model, rank, WORLD) | {"measured": losses_K}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def measured(count: int) -> Measured:
    """So many pictures of noise to be measured."""
    encoder = Encoder(tiny_tokenizer(), tiny_text_encoder(max_tokens=16), torch.device("cpu"))
    image_B3HW = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    words = ["a red circle"] * count
    keys = [str(i) for i in range(count)]
    captions: list[tuple[str, ...]] = [(word,) for word in words]
    batch = Batch(image_B3HW=image_B3HW, prompts=words, keys=keys, captions=captions, info=[{}] * count, epochs=[0])
    return Measured(encoder, iter([batch] if count else []))


def run(world: int) -> Any:
    """What is measured needs of a run."""

    def gather(tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    accelerator = SimpleNamespace(gather=gather, reduce=lambda tensor, _how: gather(tensor[None]).sum(dim=0))
    return SimpleNamespace(
        world=world,
        device=torch.device("cpu"),
        accelerator=accelerator,
        config=RunConfig(steps=1, precision="bf16"),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_two_processes_compute_in_bfloat16_what_one_does(name: str, tmp_path: Path) -> None:
    # A fork spares each process the imports; CUDA forbids it once it is begun.
    method = "spawn" if torch.cuda.is_initialized() else "fork"
    torch.multiprocessing.start_processes(
        process, args=(str(tmp_path), CHANGES[name]), nprocs=WORLD, start_method=method
    )
    expected_K = measured(PICTURES).losses(network(CHANGES[name]), run(1))
    alone = learn(network(CHANGES[name]), 0, 1)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for rank, part in enumerate(parts):
        mine = slice(rank, None, WORLD)
        torch.testing.assert_close(part["measured"], expected_K)  # though one process has no picture
        assert part["logits"].dtype == torch.float32
        torch.testing.assert_close(part["logits"], alone["logits"][mine], rtol=1e-5, atol=1e-6)
        for state, expected in zip(part["states"], alone["states"], strict=True):
            assert state.dtype == torch.float32  # the residual stream
            torch.testing.assert_close(state, expected[mine], rtol=1e-5, atol=1e-6)
    for name_of, gradient in alone["gradients"].items():
        found = parts[0]["gradients"][name_of]
        assert (found - gradient).norm() < 0.01 * gradient.norm() + 1e-8, name_of
    assert parts[0]["losses"] == pytest.approx(alone["losses"], rel=2e-4)
    moved = _distance(alone["learnt"], dict(network(CHANGES[name]).state_dict()))
    assert _distance(alone["learnt"], parts[0]["learnt"]) < 0.02 * moved


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum(float((value - other[name]).square().sum()) for name, value in one.items()) ** 0.5
