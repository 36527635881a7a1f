"""A family in small, to test the registry and the contract suite themselves: one matrix turns noise into pictures."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from star.generators import pretrained as checkpoint
from star.generators.protocol import Conditioning, SampleOptions, check_request


class ToyGenerator(nn.Module):
    conditioning: Conditioning = "none"
    resolution = (4, 6)

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.width = width
        self.to_image = nn.Linear(width, 3 * 4 * 6)

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions = SampleOptions()
    ) -> Tensor:
        check_request(self, prompts, seeds)
        pictures = []
        for seed in seeds:
            noise_1W = torch.randn(1, self.width, generator=torch.Generator().manual_seed(seed))
            image = self.to_image(options.truncation * noise_1W).reshape(3, 4, 6).tanh()
            pictures.append((image * 127.5 + 127.5).round().to(torch.uint8))
        return torch.stack(pictures)

    @classmethod
    def from_directory(
        cls, path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> "ToyGenerator":
        directory = checkpoint.ModelDirectory.read(path, "toy")
        generator = cls(**directory.config)
        checkpoint.load_into(generator, directory.tensors(), path)
        return generator.to(device, dtype)

    def save_pretrained(self, path: str | Path) -> None:
        about = {"resolution": self.resolution, "conditioning": self.conditioning, "licence": "MIT"}
        checkpoint.write(
            path,
            family="toy",
            config={"width": self.width},
            tensors=self.state_dict(),
            card="# A toy\n",
            about=about,
        )

    @classmethod
    def for_test(cls) -> "ToyGenerator":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return cls()
