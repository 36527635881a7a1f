"""The laws that every registered family keeps, as functions of its tiny test generator."""

from pathlib import Path

import pytest
import torch
from torch import nn

from star.data.errors import InputError
from star.generators.protocol import Family, Generator, SampleOptions
from tests.generators.gan.fitting import fitting_loss

PROMPTS = ["a red circle", "a blue square", "", "ein grüner Kreis 🟢", "a red circle", "مربع أزرق", "a b c d e f g"]
SEEDS = [0, 1, 2, 3, 7, 2**63 - 1, 0]


def prompts_for(generator: Generator) -> list[str]:
    return {
        "text": PROMPTS,
        "class": [str(i % 2) for i in range(len(PROMPTS))],
        "none": [""] * len(PROMPTS),
    }[generator.conditioning]


def conforms(family: type[Family]) -> None:
    generator = family.for_test()
    assert isinstance(generator, Generator)
    assert generator.conditioning in ("text", "class", "none")
    height, width = generator.resolution
    assert height > 0
    assert width > 0
    networks = [value for value in vars(generator).values() if isinstance(value, nn.Module)]
    networks += [generator] if isinstance(generator, nn.Module) else []
    assert networks
    parameters = {id(parameter): parameter for network in networks for parameter in network.parameters()}
    assert 0 < sum(parameter.numel() for parameter in parameters.values()) < 1_000_000


def draws_pixels(family: type[Family]) -> None:
    generator = family.for_test()
    pixels_B3HW = generator.generate(prompts_for(generator)[:2], seeds=SEEDS[:2])
    assert pixels_B3HW.dtype == torch.uint8
    assert pixels_B3HW.shape == (2, 3, *generator.resolution)
    assert not pixels_B3HW.requires_grad
    assert pixels_B3HW.float().std() > 0


def belongs_to_prompt_and_seed(family: type[Family]) -> None:
    """Twice the same; alone, and in a batch of 7 in two orders, to the bit on the CPU, whatever was drawn before."""
    generator, again = family.for_test(), family.for_test()
    prompts = prompts_for(generator)
    together = generator.generate(prompts, seeds=SEEDS)
    torch.rand(3)
    assert torch.equal(together, again.generate(prompts, seeds=SEEDS))
    order = [4, 2, 6, 0, 5, 1, 3]
    shuffled = generator.generate([prompts[i] for i in order], seeds=[SEEDS[i] for i in order])
    assert torch.equal(together[order], shuffled)
    for i in range(len(prompts)):
        alone = generator.generate([prompts[i]], seeds=[SEEDS[i]])
        assert torch.equal(together[i], alone[0]), f"picture {i} depends on its batch"


def leaves_the_random_state_alone(family: type[Family]) -> None:
    generator = family.for_test()
    before = torch.random.get_rng_state()
    generator.generate(prompts_for(generator)[:1], seeds=[5])
    assert torch.equal(before, torch.random.get_rng_state())


def follows_seed_and_prompt(family: type[Family]) -> None:
    generator = family.for_test()
    prompts = prompts_for(generator)
    pixels_B3HW = generator.generate([prompts[0]] * 4, seeds=[1, 2, 3, 4])
    assert not torch.equal(pixels_B3HW[0], pixels_B3HW[1]) or not torch.equal(pixels_B3HW[2], pixels_B3HW[3])
    if generator.conditioning != "none":
        one, other = (generator.generate([prompt] * 4, seeds=[1, 2, 3, 4]) for prompt in prompts[:2])
        assert not torch.equal(one, other)


def survives_its_directory(family: type[Family], folder: Path) -> None:
    generator = family.for_test()
    prompts = prompts_for(generator)
    generator.save_pretrained(folder / "model")
    loaded = family.from_directory(folder / "model")
    assert loaded.resolution == generator.resolution
    assert loaded.conditioning == generator.conditioning
    expected = generator.generate(prompts, seeds=SEEDS)
    assert torch.equal(expected, loaded.generate(prompts, seeds=SEEDS))
    loaded.save_pretrained(folder / "again")
    first, second = ({path.name: path for path in (folder / name).iterdir()} for name in ("model", "again"))
    assert first.keys() == second.keys()
    for name, path in first.items():
        assert path.is_dir() or path.read_bytes() == second[name].read_bytes(), f"{name} changed on the way"


def refuses_impossible_requests(family: type[Family]) -> None:
    generator = family.for_test()
    prompts = prompts_for(generator)
    with pytest.raises(InputError, match="2 prompts came with 1 seeds"):
        generator.generate(prompts[:2], seeds=[1])
    with pytest.raises(InputError, match="seed is -1"):
        generator.generate(prompts[:1], seeds=[-1])
    if generator.conditioning == "none":
        with pytest.raises(InputError, match=r"draws without one"):
            generator.generate(["a cat"], seeds=[1])


def takes_options(family: type[Family]) -> None:
    """Every option is accepted by every family; extremes still draw."""
    generator = family.for_test()
    for options in (
        SampleOptions(guidance_scale=1.0),
        SampleOptions(top_k=1),
        SampleOptions(truncation=0.0, top_p=0.5),
    ):
        pixels_B3HW = generator.generate(prompts_for(generator)[:1], seeds=[1], options=options)
        assert pixels_B3HW.dtype == torch.uint8


def gradient_reaches_every_parameter(family: type[Family]) -> None:
    """In one of two steps, since what is multiplied by a zero at the start gets its gradient once that has moved."""
    generator = family.for_test()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, loss = fitting_loss(generator, prompts_for(generator)[:4])
        waiting = dict(network.named_parameters())
        for _ in range(2):
            network.zero_grad()
            loss().backward()
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    if parameter.grad is not None and bool((parameter.grad != 0).any()):
                        waiting.pop(name, None)
                        parameter.sub_(1e-2 * parameter.grad)
    assert not waiting, f"no gradient reaches {', '.join(waiting)}"


def learns_one_batch(family: type[Family]) -> None:
    generator = family.for_test()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, loss = fitting_loss(generator, prompts_for(generator)[:4])
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        losses = []
        for _ in range(50):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0], f"the loss went from {losses[0]:.3g} to {losses[-1]:.3g} only"
