"""The network of the small CLIPs: sizes, construction, embeddings of both sides, the contrastive loss.

It is transformers' CLIPModel, or with a convolutional image tower its VisionTextDualEncoderModel around a ResNetModel.
Pictures are ours, image_B3HW in [-1, 1], which the saved image processor reproduces. Shapes: B pictures and as many
captions, T text tokens, P patches, D width.
"""

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    ResNetConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from star.data.clip_pair import image_vectors
from star.data.errors import InputError
from star.generators.config import UNLESS_DEFAULT, check_ranges, check_stages

Pair: TypeAlias = CLIPModel | VisionTextDualEncoderModel


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvTowerConfig:
    """A residual network (He et al. 2016) as image tower: a 7 x 7 stem and a pooling, which leave a quarter of the
    side, and stages of basic blocks at half the side each. Small collections teach it sooner than a transformer."""

    stem: int = 64
    widths: tuple[int, ...] = (64, 128, 256)
    blocks: tuple[int, ...] = (2, 2, 2)

    def __post_init__(self) -> None:
        check_ranges(self, stem=(1, 2**13), widths=(-math.inf, 2**13), blocks=(-math.inf, 128))
        check_stages(self.widths, self.blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Sizes of both towers; heads are 64 wide."""

    image_size: int = 64
    patch_size: int = 8
    vision_width: int = 192
    vision_layers: int = 6
    vision_mlp: int = 768
    text_width: int = 256
    text_layers: int = 4
    text_mlp: int = 512
    max_tokens: int = 32
    vocabulary: int = 3072
    projection: int = 256
    head_width: int = 64
    # In place of the transformer, whose patch_size and vision_* then mean nothing.
    conv: ConvTowerConfig | None = field(default=None, metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        widths = dict.fromkeys(("vision_width", "text_width", "projection", "head_width", "max_tokens"), (1, 2**14))
        mlps = dict.fromkeys(("vision_mlp", "text_mlp"), (1, 2**16))
        sides = dict.fromkeys(("image_size", "patch_size"), (1, 2**12))
        layers = dict.fromkeys(("vision_layers", "text_layers"), (1, 256))
        check_ranges(self, **widths, **mlps, **sides, **layers, vocabulary=(1, 2**20))
        if self.image_size % self.patch_size:
            raise InputError(
                f"Patches of {self.patch_size} pixels do not tile a picture of {self.image_size}; give a divisor."
            )
        for width in (self.vision_width, self.text_width):
            if width % self.head_width:
                raise InputError(f"A tower {width} wide has no whole number of heads {self.head_width} wide.")

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def build_clip(config: ClipConfig, tokenizer: CLIPTokenizer) -> Pair:
    """A pair of towers with fresh weights (drawn by transformers' own initialisers) that fits the tokenizer's ids."""
    shared = {"hidden_act": "silu", "projection_dim": config.projection}
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        **shared,
        **ids,
        "vocab_size": len(tokenizer),
        "hidden_size": config.text_width,
        "intermediate_size": config.text_mlp,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_width // config.head_width,
        "max_position_embeddings": config.max_tokens,
    }
    if config.conv:
        vision = _conv_values(config.conv, config.image_size)
        towers: dict[str, Any] = {"text_config": text | {"model_type": "clip_text_model"}, "vision_config": vision}
        return VisionTextDualEncoderModel(VisionTextDualEncoderConfig(projection_dim=config.projection, **towers))
    vision = {
        **shared,
        "hidden_size": config.vision_width,
        "intermediate_size": config.vision_mlp,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_width // config.head_width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.projection, **ids))


def _conv_values(config: ConvTowerConfig, image_size: int) -> dict[str, Any]:
    """Of transformers' ResNetConfig, and two that a dual encoder and readers of towers look for."""
    values = ResNetConfig(
        embedding_size=config.stem,
        hidden_sizes=list(config.widths),
        depths=list(config.blocks),
        layer_type="basic",
    ).to_dict()
    return values | {"hidden_size": config.widths[-1], "image_size": image_size}


def image_processor(config: ClipConfig) -> CLIPImageProcessorPil:
    """The processor saved with the model: shorter side to the model's size by Lanczos, centre crop, [-1, 1]."""
    side = config.image_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=1,  # PIL's LANCZOS, as star.data.images resizes
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def embed_images(model: Pair, image_B3HW: Tensor, keep_BP: Tensor | None = None) -> Tensor:
    """Normalised embeddings of pictures; float32 (B, D).

    keep_BP: int64, the patches each picture is seen through, every one if None. Leaving half of them out halves the
    cost of a step and regularises (Li et al. 2023, Scaling Language-Image Pre-training via Masking). A convolutional
    tower has no patches.
    """
    if isinstance(model, VisionTextDualEncoderModel):
        image_B3HW = image_B3HW.contiguous(memory_format=torch.channels_last)
        return F.normalize(image_vectors(model, image_B3HW).float(), dim=-1)
    tower = model.vision_model
    hidden_BPD = tower.embeddings(image_B3HW)
    if keep_BP is not None:
        rows_B1 = torch.arange(len(keep_BP), device=keep_BP.device)[:, None]
        hidden_BPD = torch.cat([hidden_BPD[:, :1], hidden_BPD[rows_B1, keep_BP + 1]], dim=1)
    hidden_BPD = _as_autocast(tower.pre_layrnorm(hidden_BPD))
    hidden_BPD = tower.encoder(inputs_embeds=hidden_BPD).last_hidden_state
    return F.normalize(model.visual_projection(tower.post_layernorm(hidden_BPD[:, 0])).float(), dim=-1)


def embed_texts(model: Pair, ids_BT: Tensor) -> Tensor:
    """Normalised embeddings of tokenised captions; float32 (B, D)."""
    return F.normalize(model.text_projection(end_states(model, ids_BT)).float(), dim=-1)


def end_states(model: Pair, ids_BT: Tensor) -> Tensor:
    """The text tower's normalised state at the first EOS of each caption, before its projection; (B, D).

    No padding mask: the tower is causal and its output is taken at the first EOS, so what follows changes nothing.
    """
    tower: Any = model.text_model
    length = ids_BT.shape[1]
    future_TT = torch.full((length, length), float("-inf"), device=ids_BT.device).triu(1)
    hidden_BTD = _as_autocast(tower.embeddings(ids_BT))
    hidden_BTD = tower.encoder(
        inputs_embeds=hidden_BTD, attention_mask=future_TT.to(hidden_BTD.dtype)[None, None]
    ).last_hidden_state
    end_B = (ids_BT == tower.eos_token_id).int().argmax(dim=1)
    return tower.final_layer_norm(hidden_BTD[torch.arange(len(ids_BT), device=ids_BT.device), end_B])


def _as_autocast(hidden: Tensor) -> Tensor:
    """The residual stream in autocast's type: left to itself it stays float32, which costs a fifth of a CPU step."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def contrastive_loss(text_BD: Tensor, image_BD: Tensor, scale: Tensor, excluded_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric cross-entropy over a batch of pairs, and the share of texts that find their picture.

    text_BD, image_BD: normalised. scale: exp of the log-temperature. excluded_BB: bool, pairs off the diagonal that
    are true and so must not count as negatives, in either direction. Radford et al. 2021, Figure 3, with the exclusion.
    """
    logits_BB = (scale * text_BD @ image_BD.T).masked_fill(excluded_BB, float("-inf"))
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    loss = (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2
    return loss, (logits_BB.argmax(dim=1) == target_B).float().mean()


def augment(image_B3HW: Tensor, shift: float, zoom: float) -> Tensor:
    """Moves each picture by up to `shift` of its side and scales it by up to 1 +- `zoom`; edges are continued.

    No flips and no colours: arrows, letters, and names like "red heart" must stay true. Draws from torch's own
    generator on the CPU.
    """
    jitter_B3 = (torch.rand(len(image_B3HW), 3) * 2 - 1).to(image_B3HW.device)
    theta_B23 = torch.zeros(len(image_B3HW), 2, 3, device=image_B3HW.device)
    theta_B23[:, 0, 0] = theta_B23[:, 1, 1] = 1 + zoom * jitter_B3[:, 0]
    theta_B23[:, :, 2] = 2 * shift * jitter_B3[:, 1:]  # grid_sample measures the side as 2
    grid_BHW2 = F.affine_grid(theta_B23, list(image_B3HW.shape), align_corners=False)
    return F.grid_sample(image_B3HW, grid_BHW2, padding_mode="border", align_corners=False)


def drop_patches(batch: int, patches: int, kept: int) -> Tensor:
    """keep_BP int64: `kept` patches of each picture, drawn evenly from torch's own generator on the CPU."""
    return torch.rand(batch, patches).argsort(dim=1)[:, :kept]


def parameter_groups(model: nn.Module, weight_decay: float, text_rate: float = 1.0) -> list[dict[str, Any]]:
    """Decay for matrices; none for gains, biases, position tables, the class token and the temperature.

    What is frozen is in none. text_rate: the rate of the text tower, as a multiple of the others'; its parts are in two
    groups more where that is not 1.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(weight_decay, 1.0): [], (0.0, 1.0): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim > 1 and "position_embedding" not in name
        rate = text_rate if "text_model." in name else 1.0
        groups.setdefault((weight_decay if matrix else 0.0, rate), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay} | ({"lr_scale": rate} if rate != 1 else {})
        for (decay, rate), members in groups.items()
    ]


class ClipPair(nn.Module):
    """Both towers behind one forward pass, which is what several processes need to exchange gradients."""

    def __init__(self, model: Pair) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_B3HW: Tensor, keep_BP: Tensor | None, ids_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """text_BD, image_BD, and the scale of their cosines, at most 100 (Radford et al. 2021, section 2.5)."""
        image_BD = embed_images(self.model, image_B3HW, keep_BP)
        text_BD = embed_texts(self.model, ids_BT)
        return text_BD, image_BD, self.model.logit_scale.exp().clamp(max=100.0)
