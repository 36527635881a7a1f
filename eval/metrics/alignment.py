"""Does a picture show what its prompt says? Scores of CLIPs and other pairs of towers in transformers' format.

A score is a product of a picture's row and its prompt's row, so both are computed once and kept:

    scorer = ClipScorer("openai/clip-vit-large-patch14")
    image_ND, text_ND = scorer.images(pixels_N3HW), scorer.texts(prompts)
    cosine_N = products(image_ND, text_ND)          # CLIP score; 100 times that by the other convention

PickScore (Kirstain et al. 2023) and HPS v2 (Wu et al. 2023) are CLIPs tuned on people's choices. PickScore's product
carries the model's temperature, `tempered`; HPS v2 sees the whole picture, `whole`.
N B pictures, D embedding width, H W pixels, 3 RGB.
"""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil

from star.data.clip_pair import image_vectors, read_pair, text_vectors
from star.data.images import pixels_to_pil
from star.data.pretrained import CLIP_FILES, SAFE, folder_of, loading
from star.data.transformers_network import quiet_transformers
from star.eval.metrics.features import Features
from star.eval.metrics.metric import Inputs
from star.generators.pretrained import digest

ROWS = 2048  # at a time
CANDIDATES = 20  # prompts of a rank


class ClipScorer:
    """A frozen CLIP that owns resize, range and tokenisation. pixels uint8 -> unit vectors, prompts -> unit vectors."""

    def __init__(
        self, name: str | Path, device: str | torch.device = "cpu", *, tempered: bool = False, whole: bool = False
    ) -> None:
        """name: a folder or hub id of a pair of towers (`star.data.clip_pair`). Raises InputError if it is neither.

        tempered: prompts' vectors are as long as the model's temperature, so that a product is PickScore. whole: the
        longer side of a picture fills the model's square, on black, instead of the shorter one, as HPS v2 has it.
        """
        folder = folder_of(name, CLIP_FILES, "a CLIP")
        with quiet_transformers(), loading(name, "a CLIP"):
            self.model = read_pair(folder, source=name)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE)
            self.processor = CLIPImageProcessorPil.from_pretrained(folder, **SAFE)
        self.model.to(device)
        self.device = torch.device(device)
        self.name = str(name)
        self.length = float(self.model.logit_scale.exp()) if tempered else 1.0
        self.whole = whole
        self.width: int = self.model.config.projection_dim

    @property
    def resize(self) -> str:
        """How a picture reaches the model."""
        side = self.processor.crop_size["height"]
        kernel = Image.Resampling(self.processor.resample).name.lower()
        return f"{kernel}-antialias {side}x{side} {'padded' if self.whole else 'cut'}"

    @property
    def digest(self) -> str:
        """sha256 of the weights in float32 and of what happens before them: part of a protocol's name."""
        before = {
            "resize": self.resize,
            "mean": list(self.processor.image_mean),
            "std": list(self.processor.image_std),
            "tempered": self.length != 1.0,
        }
        return digest(before, self.model.state_dict())

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        """As `images`: what an extractor of features is."""
        return self.images(pixels_B3HW)

    @torch.no_grad()
    def images(self, pixels_B3HW: Tensor, chunk: int = 64) -> Tensor:
        """image_BD float32 of unit length."""
        parts = []
        for part in pixels_B3HW.split(chunk):
            pictures = [self._fitted(pixels_to_pil(pixels)) for pixels in part]
            inputs = self.processor(pictures, return_tensors="pt")
            vectors_BD = image_vectors(self.model, inputs["pixel_values"].to(self.device))
            parts.append(F.normalize(vectors_BD.float(), dim=-1))
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], chunk: int = 256) -> Tensor:
        """text_BD float32 of unit length (times the temperature); a prompt longer than the model reads is cut."""
        limit = self.model.config.text_config.max_position_embeddings
        parts = []
        for first in range(0, len(prompts), chunk):
            inputs = self.tokenizer(
                [self._cleaned(prompt) for prompt in prompts[first : first + chunk]],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(self.device)
            vectors_BD = text_vectors(self.model, inputs["input_ids"], inputs["attention_mask"])
            parts.append(F.normalize(vectors_BD.float(), dim=-1))
        return torch.cat(parts).cpu() * self.length

    def _fitted(self, picture: Image.Image) -> Image.Image:
        if not self.whole or picture.width == picture.height:
            return picture
        side = self.processor.crop_size["height"]
        return ImageOps.pad(picture, (side, side), Image.Resampling(self.processor.resample), color=(0, 0, 0))

    def _cleaned(self, prompt: str) -> str:
        """HPS v2 reads prompts through open_clip, which undoes HTML's entities, even doubled ones."""
        return html.unescape(html.unescape(prompt)).strip() if self.whole else prompt


def products(image_ND: Features, text_ND: Features) -> Tensor:
    """Each picture's row times its prompt's row; (N,)."""
    parts = [slice(top, top + ROWS) for top in range(0, len(image_ND), ROWS)]
    return torch.cat([(image_ND[part] * text_ND[part]).sum(dim=1) for part in parts or [slice(0)]])


def clip_score(inputs: Inputs) -> Tensor:
    """Cosine of picture and prompt, (N,); PickScore and HPS v2 by their own CLIPs."""
    return inputs.once(_products)


def clip_score_100(inputs: Inputs) -> Tensor:
    """The same by the other convention, (N,)."""
    return inputs.once(_products) * 100


def prompt_rank_20(inputs: Inputs) -> Tensor | None:
    """1 where a picture's own prompt is the first of 20, else 0, (N,); None for fewer different prompts."""
    if len(set(inputs.prompts)) < CANDIDATES:
        return None
    ranks_N = prompt_ranks(inputs.generated, inputs.texts, inputs.prompts, CANDIDATES, inputs.seed)
    return (ranks_N == 0).float()


def reward(inputs: Inputs) -> Tensor:
    """What a network says of a picture and its prompt, (N,)."""
    return inputs.rewards.float()


def _products(inputs: Inputs) -> Tensor:
    return products(inputs.generated, inputs.texts)


def prompt_ranks(
    image_BD: Features, text_BD: Features, prompts: Sequence[str], candidates: int, seed: int = 0
) -> Tensor:
    """int64 (B,): place of each picture's own prompt among `candidates`, 0 the best.

    The other candidates are drawn without repeats from the prompts of the other pictures that read differently. A tie
    counts against the picture. Raises ValueError if there are not enough different prompts.
    """
    if len(set(prompts)) < candidates:
        raise ValueError(f"{len(set(prompts))} different prompts given, {candidates} candidates need as many")
    generator = np.random.default_rng(seed)
    first = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
    distinct = np.array(sorted(first.values()))
    ranks = []
    for index, prompt in enumerate(prompts):
        others = generator.choice(distinct[distinct != first[prompt]], candidates - 1, replace=False)
        scores = (text_BD[torch.from_numpy(np.append(others, index))] * image_BD[index : index + 1]).sum(dim=1)
        ranks.append(int((scores[:-1] >= scores[-1]).sum()))
    return torch.tensor(ranks)
