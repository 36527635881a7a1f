"""Does a picture show what its prompt says? Scores of a CLIP model, computed from transformers' CLIPModel directly.

B pictures, D embedding width, H W pixels, 3 RGB.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from data.errors import InputError
from data.images import pixels_to_pil


class ClipScorer:
    """A frozen CLIP that owns resize, range and tokenisation. pixels uint8 -> unit vectors, prompts -> unit vectors."""

    def __init__(self, name: str | Path, device: str | torch.device = "cpu") -> None:
        """name: a folder or hub id in transformers' CLIP format. Raises InputError if it is neither."""
        try:
            self.model = CLIPModel.from_pretrained(name).float().eval().requires_grad_(False)
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.processor = CLIPImageProcessorPil.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{name} cannot be loaded as a CLIP ({str(error).splitlines()[0]}); give a folder or hub id in "
                "transformers' CLIP format"
            ) from error
        self.model.to(device)
        self.device = torch.device(device)

    @property
    def digest(self) -> str:
        """sha256 of the weights in float32: part of a protocol's name."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()

    @torch.no_grad()
    def images(self, pixels_B3HW: Tensor, chunk: int = 64) -> Tensor:
        """image_BD float32 of unit length."""
        parts = []
        for part in pixels_B3HW.split(chunk):
            inputs = self.processor([pixels_to_pil(pixels) for pixels in part], return_tensors="pt")
            parts.append(_embedding(self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.device))))
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], chunk: int = 256) -> Tensor:
        """text_BD float32 of unit length; a prompt longer than the model reads is cut."""
        limit = self.model.config.text_config.max_position_embeddings
        parts = []
        for first in range(0, len(prompts), chunk):
            inputs = self.tokenizer(
                list(prompts[first : first + chunk]),
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(self.device)
            parts.append(
                _embedding(
                    self.model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
                )
            )
        return torch.cat(parts).cpu()


def _embedding(output: object) -> Tensor:
    # transformers 4 returns the tensor, transformers 5 an object that holds it
    tensor = output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]
    return F.normalize(tensor.float(), dim=-1)


def prompt_ranks(image_BD: Tensor, text_BD: Tensor, prompts: Sequence[str], candidates: int, seed: int = 0) -> Tensor:
    """int64 (B,): place of each picture's own prompt among `candidates`, 0 the best.

    The other candidates are drawn without repeats from the prompts of the other pictures that read differently. A tie
    counts against the picture. Raises ValueError if there are not enough different prompts.
    """
    if len(set(prompts)) < candidates:
        raise ValueError(f"{len(set(prompts))} different prompts given, {candidates} candidates need as many")
    generator = np.random.default_rng(seed)
    scores_BB = image_BD @ text_BD.T
    first = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
    distinct = np.array(sorted(first.values()))
    ranks = []
    for index, prompt in enumerate(prompts):
        others = generator.choice(distinct[distinct != first[prompt]], candidates - 1, replace=False)
        ranks.append(int((scores_BB[index, torch.from_numpy(others)] >= scores_BB[index, index]).sum()))
    return torch.tensor(ranks)


def bootstrap_interval(values_B: Tensor, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron 1979)."""
    generator = np.random.default_rng(seed)
    values = values_B.double().numpy()
    means = values[generator.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
