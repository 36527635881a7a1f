"""What the style-based GANs have in common once they are trained: prompt and seed to styles to a picture.

    class StyleNatGenerator(GanGenerator):
        family, network_class, config_class = "stylenat", StyleNat, StyleNatConfig

A family brings its network (`GanNetwork`) and a frozen config; drawing, conditioning, and the model directory are here.
The condition of a prompt is a unit vector: the text encoder's pooled state, through the projection that CLIP learned
for it (kept in the model directory), normalised. Classes are one-hot.

B batch, Z latent width, P condition width, S style slots, W style width, D text width, H W pixels, 3 RGB.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.images import image_to_pixels
from star.data.text import TextEncoder
from star.generators.config import from_dict, to_dict
from star.generators.gan.layers import MappingNetwork
from star.generators.pretrained import ModelDirectory, Reference, load_into, write
from star.generators.protocol import Conditioning, SampleOptions, check_request

NoiseMode = Literal["random", "const", "none"]
Phase = Literal["all", "freeze64", "text_encoder"]  # what learns: see GanNetwork.trainable
PROJECTION = "text_projection"  # beside the network's own tensors in a model directory


class GanNetwork(nn.Module, ABC):
    """A generator network as training and drawing see it. `raw` is what the discriminator sees, in the range that the
    paper trained in; `image` is in [-1, 1]."""

    config: Any  # the frozen dataclass that it was built from
    conditioning: Conditioning
    resolution: tuple[int, int]  # (H, W), pixels
    latent_width: int  # Z
    condition_width: int  # P: of the text embedding, or the number of classes; 0 without a condition
    slots: int  # S: layers that each take a style of their own
    grows: ClassVar[bool] = False  # whether it can start from a network of lower resolution, by `grow_from`

    @abstractmethod
    def styles(
        self,
        latent_BZ: Tensor,
        condition_BP: Tensor | None = None,
        *,
        truncation: float = 1.0,
        cutoff: int | None = None,
        track: bool = False,
    ) -> Tensor:
        """w_BSW. truncation: 1 leaves styles, 0 gives the mean (of this condition); only in slots before
        `cutoff` if given.

        track: moves the running mean of styles, in training.
        """

    @abstractmethod
    def synthesis(self, w_BSW: Tensor, noise: NoiseMode = "random") -> Tensor:
        """raw_B3HW float."""

    def forward(
        self,
        latent_BZ: Tensor,
        condition_BP: Tensor | None = None,
        noise: NoiseMode = "random",
        mix: tuple[Tensor, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """raw_B3HW and w_BSW, as in training: untruncated, the running mean of styles tracked.

        mix: a second latent_BZ, and the slot from which on its styles take over (Karras et al. 2019, §3.1).
        """
        w_BSW = self.styles(latent_BZ, condition_BP, track=self.training)
        if mix is not None:
            other_BZ, first = mix
            w_BSW = torch.cat([w_BSW[:, :first], self.styles(other_BZ, condition_BP)[:, first:]], dim=1)
        return self.synthesis(w_BSW, noise), w_BSW

    def normalise(self, image_B3HW: Tensor) -> Tensor:
        """image in [-1, 1] to the raw range."""
        return image_B3HW

    def denormalise(self, raw_B3HW: Tensor) -> Tensor:
        """raw to image, not clamped."""
        return raw_B3HW

    def trainable(self, phase: Phase) -> list[nn.Parameter]:
        """The parameters that learn in a phase of the training; the others are to be frozen.

        Raises InputError for a phase that this network does not have.
        """
        if phase == "all":
            return list(self.parameters())
        raise InputError(f"the phase {phase} was asked of a {type(self).__name__}, expected a StyleGAN-T: use all")

    def grow_from(self, smaller: Mapping[str, Tensor]) -> None:
        """Loads the state dict of a network of lower resolution, where `grows` is set.

        Raises InputError where it does not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} does not grow")


class MappedNetwork(GanNetwork):
    """A network whose styles come from one mapping network that reads latent and condition: w, once for each slot."""

    mapping: MappingNetwork

    def styles(
        self,
        latent_BZ: Tensor,
        condition_BP: Tensor | None = None,
        *,
        truncation: float = 1.0,
        cutoff: int | None = None,
        track: bool = False,
    ) -> Tensor:
        """w_BSW, see GanNetwork. Text is truncated towards the mean of its own styles, classes as released."""
        w_BW = self.mapping(latent_BZ, condition_BP)
        if track:
            self.mapping.track(w_BW)
        w_BSW = w_BW[:, None].expand(-1, self.slots, -1)
        if truncation == 1.0:
            return w_BSW
        mean_BW = None
        if condition_BP is not None and self.conditioning == "text":
            mean_BW = self.mapping.mean_given(condition_BP)
        shortened_BW = self.mapping.truncate(w_BW, truncation, mean_BW)
        cutoff = self.slots if cutoff is None else cutoff
        return torch.cat([shortened_BW[:, None].expand(-1, cutoff, -1), w_BSW[:, cutoff:]], dim=1)


class GanGenerator(ABC):
    """A trained GAN: network, text encoder where it reads text, labels where it reads classes (protocol.Family)."""

    family: ClassVar[str]
    network_class: ClassVar[type[Any]]  # a GanNetwork that takes the config
    config_class: ClassVar[type]  # a frozen dataclass
    heeds: ClassVar[frozenset[str]] = frozenset({"truncation"})

    def __init__(
        self,
        network: GanNetwork,
        text_encoder: TextEncoder | None = None,
        projection_PD: Tensor | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        """projection_PD: CLIP's text projection; None takes the pooled state as it is. labels: names of the classes.

        Raises ValueError where the parts do not fit.
        """
        self.network = network.eval()
        self.text_encoder, self.labels = text_encoder, tuple(labels)
        self.projection = None
        if (text_encoder is None) == (network.conditioning == "text"):
            raise ValueError(f"a network of conditioning {network.conditioning} does not go with this text encoder")
        if text_encoder is not None:
            width = text_encoder.width if projection_PD is None else projection_PD.shape[0]
            if width != network.condition_width:
                raise ValueError(
                    f"the network reads {network.condition_width} numbers of a prompt, the text gives {width}"
                )
            if projection_PD is not None:
                if projection_PD.shape[1] != text_encoder.width:
                    raise ValueError(
                        f"the projection reads {projection_PD.shape[1]}, the text encoder gives {text_encoder.width}"
                    )
                self.projection = nn.Parameter(projection_PD.detach().clone(), requires_grad=False)
        if self.labels and len(self.labels) != network.condition_width:
            raise ValueError(f"{len(self.labels)} labels were given for {network.condition_width} classes")

    @property
    def conditioning(self) -> Conditioning:
        return self.network.conditioning

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.network.resolution

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def condition(self, prompts: Sequence[str]) -> Tensor | None:
        """condition_BP of prompts: unit vectors of text, one-hot classes, or None. Raises InputError for no class."""
        if self.conditioning == "none":
            return None
        if self.conditioning == "class":
            classes_B = torch.tensor([self.label(prompt) for prompt in prompts], device=self.device)
            return F.one_hot(classes_B, self.network.condition_width).float()
        assert self.text_encoder is not None
        return embed(self.text_encoder, self.projection, prompts).to(self.device)

    def label(self, prompt: str) -> int:
        """The class that a prompt names, by number or label; raises InputError for anything else."""
        text, classes = prompt.strip(), self.network.condition_width
        if text in self.labels:
            return self.labels.index(text)
        if not (text.isascii() and text.isdigit() and int(text) < classes):
            known = f" or one of {', '.join(self.labels)}" if self.labels else ""
            raise InputError(
                f"the prompt {prompt[:60]!r} was given to a model of classes, expected a number from 0 to "
                f"{classes - 1}{known}: give one"
            )
        return int(text)

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions = SampleOptions()
    ) -> Tensor:
        """pixels_B3HW, uint8. Heeds `options.truncation`.

        On a CPU pictures are drawn one by one, so each is the same to the bit in any company; elsewhere kernels round
        by batch size, and pixels may differ by one.
        """
        check_request(self, prompts, seeds)
        if not prompts:
            return torch.empty(0, 3, *self.resolution, dtype=torch.uint8)
        size = 1 if self.device.type == "cpu" else 64
        pictures = []
        for first in range(0, len(prompts), size):
            part = slice(first, first + size)
            pictures.append(self.pictures(self.styles(prompts[part], seeds[part], options)))
        return torch.cat(pictures)

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """latent_BZ of seeds, float32, the same on every device."""
        rows = [torch.randn(self.network.latent_width, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(rows).to(self.device)

    @torch.inference_mode()
    def styles(self, prompts: Sequence[str], seeds: Sequence[int], options: SampleOptions) -> Tensor:
        """w_BSW of prompts and seeds, truncated as the options say."""
        return self.styles_of(self.latents(seeds), self.condition(prompts), options.truncation)

    @torch.inference_mode()
    def styles_of(self, latent_BZ: Tensor, condition_BP: Tensor | None, truncation: float = 1.0) -> Tensor:
        """w_BSW, in the type of the network; see GanNetwork.styles."""
        dtype = next(self.network.parameters()).dtype
        condition_BP = None if condition_BP is None else condition_BP.to(dtype)
        return self.network.styles(latent_BZ.to(dtype), condition_BP, truncation=truncation)

    @torch.inference_mode()
    def pictures(self, w_BSW: Tensor) -> Tensor:
        """pixels_B3HW, uint8, of styles: what `generate` makes of them. All at once."""
        image_B3HW = self.network.denormalise(self.network.synthesis(w_BSW, "const"))
        return image_to_pixels(image_B3HW.float().clamp(-1, 1)).cpu()

    @classmethod
    def from_directory(
        cls, path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """Reads a model directory with the text encoder it refers to; float32 unless `dtype` says otherwise.

        Raises InputError where something is missing, damaged, of another shape, or was not trained together.
        """
        directory = ModelDirectory.read(path, cls.family)
        values = dict(directory.config)
        labels = values.pop("labels", ())
        if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
            raise InputError(f"{path} config.labels is no list of names: correct it, or get the model directory again")
        config: Any = from_dict(cls.config_class, values, f"{path} config")
        directory.check_fits(lambda: cls.network_class(config), others=[PROJECTION])
        with torch.random.fork_rng(devices=[]):  # not on the meta device: tables that are not stored are made here
            network = cls.network_class(config).to(dtype or torch.float32)
        tensors = directory.tensors()
        projection_PD = tensors.pop(PROJECTION, None)
        load_into(network, tensors, path)
        text_encoder = None
        if "text_encoder" in directory.references:
            text_encoder = TextEncoder.from_pretrained(directory.resolve("text_encoder"), device=device)
            directory.check_reference("text_encoder", text_encoder.digest)
        if projection_PD is not None:
            projection_PD = projection_PD.to(device, torch.float32)
        return cls(network.to(device), text_encoder, projection_PD, tuple(labels))

    def save_pretrained(
        self,
        path: str | Path,
        *,
        card: str = "",
        about: Mapping[str, Any] | None = None,
        references: Mapping[str, str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes a model directory that draws the same pictures.

        references: where a "text_encoder" is to be found instead of inside the directory. dtype: type of the stored
        weights; one narrower than that of the network changes the pictures.
        """
        tensors = dict(self.network.state_dict())
        if self.projection is not None:
            tensors[PROJECTION] = self.projection.detach()
        places, parts = dict(references or {}), {}
        named: dict[str, Reference] = {}
        if self.text_encoder is not None:
            encoder = self.text_encoder
            if "text_encoder" not in places:
                parts["text_encoder"] = encoder.save_pretrained
            place = places.get("text_encoder", "text_encoder")
            named["text_encoder"] = Reference(location=place, digest=encoder.digest)
        height, width = self.resolution
        labels = {"labels": list(self.labels)} if self.labels else {}
        write(
            path,
            family=self.family,
            config={**to_dict(self.network_config), **labels},
            tensors=tensors,
            card=card or f"# A {self.family} generator\n\nDraws {height} x {width} pixels.\n",
            about={"resolution": [height, width], "conditioning": self.conditioning, **(about or {})},
            references=named,
            parts=parts,
            dtype=dtype,
        )

    @property
    def network_config(self) -> Any:
        """The frozen config that the network was built from."""
        return self.network.config

    @classmethod
    @abstractmethod
    def for_test(cls) -> Self:
        """A network of fewer than a million parameters with fixed random weights, for the contract suite."""


def embed(text_encoder: TextEncoder, projection_PD: Tensor | None, prompts: Sequence[str]) -> Tensor:
    """condition_BP float32 of unit length (spec of StyleGAN-T: CLIP's pooled, projected, normalised text)."""
    pooled_BD = text_encoder.encode(prompts).pooled_BD.float()
    if projection_PD is None:
        return F.normalize(pooled_BD, dim=1)
    rows = [
        F.normalize(F.linear(pooled_D[None], projection_PD), dim=1) for pooled_D in pooled_BD
    ]  # one by one: to the bit
    return torch.cat(rows)
