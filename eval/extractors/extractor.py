"""Pixels to features: frozen networks that own their resize and range, so that a metric sees nothing but rows.

    classifier = extractor("judge-emoji")            # ships with this project; so do "clip-emoji" and "guide-emoji"
    features_BD = classifier(pixels_B3HW)            # uint8 of any size -> float32 on the CPU

    "clip:DIR or hub id"    CLIP's image embedding, unit length; `texts(prompts)` gives the matching rows of prompts;
                            other pairs of towers in transformers' dual encoder format, too (star.data.clip_pair)
    "dino:DIR or hub id"    DINOv2, the normalised class token
    "judge:DIR"             a network that `star train judge` wrote
    "pick:DIR or hub id"    PickScore's CLIP; its text rows carry the temperature, so that a product is the score
    "hps:DIR or hub id"     HPS v2's CLIP
    "thumbnail"             colours and gradients of 16 x 16 pixels, without a network (star.eval.metrics.retrieval)
    "inception"             FID's Inception, with the resize of its first graph; "inception-pytorch-fid" with another

`resize` says how a picture reaches the network, and counts in `digest`: two ways to resize are two networks.
Shapes: B pictures, D feature width, H W pixels, 3 RGB.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from star.data.errors import InputError
from star.data.images import pil_to_image, pixels_to_image, pixels_to_pil, resize
from star.data.pretrained import VISION_FILES, check_folder, folder_of, loading
from star.data.transformers_network import read_network
from star.eval.extractors.classifier import read_classifier, read_phrases, subject_meant
from star.eval.metrics.alignment import ClipScorer
from star.eval.metrics.retrieval import Thumbnail
from star.generators import registry
from star.generators.pretrained import digest

SHIPPED = {"judge-emoji": "judge", "clip-emoji": "clip", "guide-emoji": "clip"}  # name -> kind
Device = str | torch.device


class Extractor(Protocol):
    """A frozen network. `digest`: sha256 of weights and of what happens before them."""

    name: str
    width: int

    @property
    def digest(self) -> str: ...

    @property
    def resize(self) -> str:
        """E.g. "lanczos-antialias 64x64 cut"."""
        ...

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        """features_BD float32 on the CPU. A picture's row does not depend on its batch beyond rounding."""
        ...


@runtime_checkable
class TextExtractor(Protocol):
    """What an extractor of a contrastive model has beside: rows of prompts in the same space."""

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """text_BD float32 on the CPU; prompts longer than the model reads are cut."""
        ...


def extractor(name: str, device: Device = "cpu") -> Extractor:
    """The extractor of a name, see the module's text. Raises InputError for an unknown name or missing weights."""
    kind, _, place = name.partition(":")
    if name in SHIPPED:
        kind, place = SHIPPED[name], str(shipped(name))
    elif name in ("inception", "inception-pytorch-fid"):
        from star.eval.extractors.inception import Inception

        return Inception(name, device)
    elif name == Thumbnail.name:
        return Thumbnail()
    elif kind not in KINDS or not place:
        known = (*SHIPPED, Thumbnail.name, *(f"{kind}:DIR" for kind in KINDS), "inception", "inception-pytorch-fid")
        raise InputError(f"there is no network {name!r} for features{registry.near(name, known)}")
    network = KINDS[kind](place, device)
    network.name = name
    return network


def shipped(name: str) -> Path:
    """The folder of weights that the package carries. Raises InputError if it does not."""
    if (folder := registry.shipped(name)) is None:
        raise InputError(f"the weights of {name} are missing: install the package anew, or give another network")
    return folder


class Classifier:
    """A classifier's pooled last layer, see `star.eval.extractors.classifier`; and its labels, told from that layer."""

    def __init__(self, place: str | Path, device: Device = "cpu") -> None:
        """place: a model directory of the family judge. Raises InputError if that is none, or is damaged."""
        self.name = str(place)
        network, directory = read_classifier(place)
        self.network, self.device = network.to(device), torch.device(device)
        self.side = network.config.image_size
        self.width = network.config.widths[-1]
        self.phrases = read_phrases(directory, network.config.subjects)
        self.resize = f"lanczos-antialias {self.side}x{self.side} cut"
        self.digest = digest({"resize": self.resize, "network": directory.digest}, {})

    @torch.no_grad()
    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        return self.network.features(self._prepared(pixels_B3HW)).float().cpu()

    @torch.no_grad()
    def logits(self, pixels_B3HW: Tensor) -> dict[str, Tensor]:
        """By head, float32 on the CPU (B, labels); the labels are those of `network.config.heads`."""
        return {name: logits.float().cpu() for name, logits in self.network(self._prepared(pixels_B3HW)).items()}

    def labels(self, head: str) -> Sequence[str]:
        """As star.eval.metrics.metric.LabelExtractor has it; heads are those of `network.config.heads`."""
        return self.network.config.heads.get(head, ())

    @torch.no_grad()
    def label_logits(self, features_BD: Tensor, head: str) -> Tensor:
        """The head is linear on the features, so these are the logits of the pictures."""
        return self.network.heads[head](features_BD.to(self.device)).float().cpu()

    def labels_meant(self, prompts: Sequence[str], head: str) -> list[str]:
        """Subjects by the phrases of the training captions; of other heads nothing is known."""
        return [subject_meant(prompt, self.phrases) if head == "subject" else "" for prompt in prompts]

    def _prepared(self, pixels_B3HW: Tensor) -> Tensor:
        return torch.stack([fitted(pixels_3HW, self.side) for pixels_3HW in pixels_B3HW]).to(self.device)


class Dino:
    """DINOv2's class token after the last norm; Stein et al. 2023 and Oquab et al. 2023.

    The shorter side becomes 224 pixels (bicubic, antialiased), the middle square is taken: without the border that the
    usual preparation for classification cuts away, since all of a generated picture counts.
    """

    SIDE = 224
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as all DINOv2 were trained

    def __init__(self, place: str | Path, device: Device = "cpu") -> None:
        """place: a folder or hub id in transformers' format. Raises InputError if it holds no DINOv2."""
        from transformers import AutoModel

        self.name = str(place)
        folder = folder_of(place, VISION_FILES, "a DINOv2")
        with loading(place, "a DINOv2"):
            check_folder(folder, ("dinov2", "dinov2_with_registers"))
            model: Any = read_network(AutoModel, folder, "its network", source=place, dtype=torch.float32)
        self.model, self.device = model.to(device), torch.device(device)
        self.width: int = model.config.hidden_size
        self.side = self.SIDE - self.SIDE % model.config.patch_size
        self.resize = f"bicubic-antialias {self.side}x{self.side} cut"
        before = {"resize": self.resize, "mean": list(self.MEAN), "std": list(self.STD)}
        self.digest = digest(before, model.state_dict())

    @torch.no_grad()
    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        image_B3HW = torch.stack([self._fitted(pixels_3HW) for pixels_3HW in pixels_B3HW])
        mean_311, std_311 = (torch.tensor(values).view(3, 1, 1) for values in (self.MEAN, self.STD))
        inputs_B3HW = ((image_B3HW + 1) / 2 - mean_311) / std_311
        return self.model(pixel_values=inputs_B3HW.to(self.device)).last_hidden_state[:, 0].float().cpu()

    def _fitted(self, pixels_3HW: Tensor) -> Tensor:
        picture = pixels_to_pil(pixels_3HW)
        short = min(picture.size)
        left, top = (picture.width - short) / 2, (picture.height - short) / 2
        box = (left, top, left + short, top + short)
        return pil_to_image(picture.resize((self.side, self.side), Image.Resampling.BICUBIC, box=box))


def fitted(pixels_3HW: Tensor, side: int) -> Tensor:
    """image_3HW of a square side: Lanczos with antialiasing, the middle of what is not square."""
    if pixels_3HW.shape[-2:] == (side, side):
        return pixels_to_image(pixels_3HW)
    return pil_to_image(resize(pixels_to_pil(pixels_3HW), (side, side)))


KINDS: dict[str, Callable[[str, Device], Any]] = {
    "judge": Classifier,
    "clip": ClipScorer,
    "dino": Dino,
    "pick": partial(ClipScorer, tempered=True),
    "hps": partial(ClipScorer, whole=True),
}
