"""The contract suite over every family of the registry; a new one gets it for free."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import pytest
import torch
from torch import Tensor

from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators import registry
from star.generators.protocol import Family, SampleOptions
from star.tiny import CODE_WIDTH, tiny_tokenizer, tiny_transformer
from tests.generators import contract
from tests.generators.toy import ToyGenerator

Law = Callable[[type[Family]], None]
LAWS: list[Law] = [
    contract.conforms,
    contract.draws_pixels,
    contract.belongs_to_prompt_and_seed,
    contract.leaves_the_random_state_alone,
    contract.follows_seed_and_prompt,
    contract.refuses_impossible_requests,
    contract.takes_options,
    contract.gradient_reaches_every_parameter,
    contract.learns_one_batch,
]


class BitwiseStar(StarGenerator):
    """The family `star` with tokens of bits: another tokenizer and another head, the same class."""

    @classmethod
    def for_test(cls) -> Self:
        transformer = tiny_transformer(bits=CODE_WIDTH, vocabulary=2)
        return cls(transformer, tiny_tokenizer(bits=True), tiny_text_encoder())


OTHERS: dict[str, type[Family]] = {"toy": ToyGenerator, "star of bits": BitwiseStar}


@pytest.fixture(params=[*OTHERS, *registry.families()])
def family(request: pytest.FixtureRequest) -> type[Family]:
    return OTHERS[request.param] if request.param in OTHERS else registry.family(request.param)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(family: type[Family], law: Law) -> None:
    law(family)


class Deaf(ToyGenerator):
    """A toy with a parameter that nothing reads."""

    def __init__(self, width: int = 5) -> None:
        super().__init__(width)
        self.unread = torch.nn.Parameter(torch.zeros(3))


class Rigid(ToyGenerator):
    """A toy whose weights cannot move."""

    def __init__(self, width: int = 5) -> None:
        super().__init__(width)
        self.to_image.weight.register_hook(torch.zeros_like)
        self.to_image.bias.register_hook(torch.zeros_like)


def test_suite_notices_what_does_not_learn() -> None:
    with pytest.raises(AssertionError, match="no gradient reaches unread"):
        contract.gradient_reaches_every_parameter(Deaf)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="the loss went from"):
        contract.learns_one_batch(Rigid)  # type: ignore[arg-type]


def test_survives_its_directory(family: type[Family], tmp_path: Path) -> None:
    contract.survives_its_directory(family, tmp_path)


def broken(name: str) -> type[ToyGenerator]:
    """Toys that each break one law, to show that the suite would notice."""

    class Broken(ToyGenerator):
        def generate(
            self, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions = SampleOptions()
        ) -> Tensor:
            if name == "asks nothing":
                return super().generate([""] * len(seeds), seeds=[abs(seed) for seed in seeds])
            pixels = super().generate(prompts, seeds=seeds)
            if name == "batch":
                return pixels.roll(int(len(seeds) == 1), dims=-1)
            if name == "place":
                return pixels + torch.arange(len(seeds))[:, None, None, None].to(torch.uint8)
            if name == "global noise":
                return (pixels + torch.rand(pixels.shape) * 9).to(torch.uint8)
            if name == "image":
                return pixels.float() / 127.5 - 1
            return pixels[:1].expand_as(pixels).clone()

    return Broken


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("batch", contract.belongs_to_prompt_and_seed),
        ("place", contract.belongs_to_prompt_and_seed),
        ("global noise", contract.leaves_the_random_state_alone),
        ("image", contract.draws_pixels),
        ("first only", contract.follows_seed_and_prompt),
        ("asks nothing", contract.refuses_impossible_requests),
    ],
)
def test_suite_notices(name: str, law: Law) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law(broken(name))
