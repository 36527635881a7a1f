"""ImageReward (Xu et al. 2023): how well a picture pleases people who know its prompt, about N(0, 1) over their data.

    network = reward("THUDM/ImageReward")            # or a folder with ImageReward.pt
    rewards_N = network(pixels_N3HW, prompts)

The released file holds a BLIP (Li et al. 2022) under names of its own, and a head without activations. It is rebuilt on
transformers' BLIP; sizes are read off the tensors. BERT's tokenizer may lie in the folder, else it comes from the hub.
B pictures, T tokens (35), P patches, D width, H W pixels, 3 RGB.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipVisionConfig, CLIPImageProcessorPil
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from star.data.errors import InputError
from star.data.images import pixels_to_pil
from star.data.pretrained import SAFE, check_files, folder_of, loading
from star.data.transformers_network import quiet_transformers
from star.generators.pickle_loader import CheckpointFile
from star.generators.pretrained import digest, load_into

FILE, TOKENIZER = "ImageReward.pt", "google-bert/bert-base-uncased"
TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores, over the authors' data
HEAD_WIDTH = 64  # of attention, in both towers

VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\..*|blip\.text_encoder\.embeddings\.position_ids")
RENAMED = {
    r"cls_token": "embeddings.class_embedding",
    r"pos_embed": "embeddings.position_embedding",
    r"patch_embed\.proj\.(.*)": r"embeddings.patch_embedding.\1",
    r"blocks\.(\d+)\.norm([12])\.(.*)": r"encoder.layers.\1.layer_norm\2.\3",
    r"blocks\.(\d+)\.attn\.qkv\.(.*)": r"encoder.layers.\1.self_attn.qkv.\2",
    r"blocks\.(\d+)\.attn\.proj\.(.*)": r"encoder.layers.\1.self_attn.projection.\2",
    r"blocks\.(\d+)\.mlp\.(.*)": r"encoder.layers.\1.mlp.\2",
    r"norm\.(.*)": r"post_layernorm.\1",
}


class RewardNetwork(nn.Module):
    """Vision tower, text tower that attends to its patches, head on the first token."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig, head: Mapping[str, tuple[int, ...]]) -> None:
        """head: number of each linear layer in the released file -> shape of its weight."""
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = nn.Sequential(
            OrderedDict((name, nn.Linear(before, after)) for name, (after, before) in head.items())
        )

    def forward(self, image_B3HW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Rewards (B,), normalised."""
        patches_BPD = self.vision(pixel_values=image_B3HW).last_hidden_state
        words_BTD = self.text(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            encoder_hidden_states=patches_BPD,
            encoder_attention_mask=torch.ones(patches_BPD.shape[:2], dtype=torch.long, device=ids_BT.device),
            use_cache=False,
        ).last_hidden_state
        return (self.head(words_BTD[:, 0]).squeeze(1) - MEAN) / STD


class ImageReward:
    """A frozen network that owns resize, range and tokenisation."""

    def __init__(self, place: str | Path, device: str | torch.device = "cpu") -> None:
        """place: a folder with ImageReward.pt, or a hub id. Raises InputError if there is none, or it is another."""
        self.name = str(place)
        file = _file(place)
        try:
            stored = CheckpointFile(file)
        except KeyError as error:
            raise InputError(f"{file} holds no tensors by name: give the folder of the released file") from error
        tensors = {name: tensor.float() for name, tensor in stored.items() if not UNUSED.fullmatch(name)}
        try:
            with quiet_transformers():
                vision, text, head = _configs(tensors)
                network = RewardNetwork(vision, text, head)
        except (LookupError, ValueError, ArithmeticError, TypeError) as error:
            raise InputError(
                f"{file} does not hold an ImageReward ({error}): give the folder of the released file"
            ) from error
        load_into(network, {_renamed(name): tensor for name, tensor in tensors.items()}, file)
        self.tokenizer = _tokenizer(place)
        side: Any = vision.image_size
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        self.network, self.device = network.to(device).eval().requires_grad_(False), torch.device(device)
        self.resize = f"bicubic-antialias {side}x{side} cut"
        self.digest = digest({"resize": self.resize, "tokens": TOKENS}, network.state_dict())

    @torch.no_grad()
    def __call__(self, pixels_B3HW: Tensor, prompts: Sequence[str], chunk: int = 32) -> Tensor:
        """float32 (B,), the higher the better; a prompt of more than 35 tokens is cut. Raises ValueError if there is
        not one prompt for each picture."""
        if len(pixels_B3HW) != len(prompts):
            raise ValueError(f"{len(pixels_B3HW)} pictures and {len(prompts)} prompts given, expected as many of both")
        parts = []
        for first in range(0, len(prompts), chunk):
            pictures = [pixels_to_pil(pixels_3HW) for pixels_3HW in pixels_B3HW[first : first + chunk]]
            image_B3HW = self.processor(pictures, return_tensors="pt")["pixel_values"]
            words = self.tokenizer(
                list(prompts[first : first + chunk]),
                padding="max_length",
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            )
            inputs = (image_B3HW, words["input_ids"], words["attention_mask"])
            parts.append(self.network(*(tensor.to(self.device) for tensor in inputs)).float().cpu())
        return torch.cat(parts)


def reward(name: str, device: str | torch.device = "cpu") -> ImageReward:
    """The network behind "image_reward/<name>". Raises InputError if it cannot be had."""
    return ImageReward(name, device)


def _file(place: str | Path) -> Path:
    if Path(place).is_dir():
        return Path(place) / FILE
    try:
        return Path(hf_hub_download(str(place), FILE))
    except Exception as error:  # whatever the hub's client raises
        raise InputError(
            f"{place} is no folder here, and {FILE} could not be had from the Hugging Face hub "
            f"({type(error).__name__}): give a folder that holds it, or check the spelling and the connection"
        ) from error


def _tokenizer(place: str | Path) -> Any:
    """The one in the folder, where there is one, else BERT's own."""
    own = Path(place).is_dir() and any((Path(place) / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    files = ("config.json", "tokenizer*", "vocab.txt")
    folder = Path(place) if own else folder_of(TOKENIZER, files, f"the words of {TOKENIZER} beside {FILE}, or a BERT")
    with loading(folder, f"the tokenizer of {TOKENIZER}"):
        check_files(folder)
        return AutoTokenizer.from_pretrained(folder, **SAFE)


def _configs(tensors: Mapping[str, Tensor]) -> tuple[BlipVisionConfig, BlipTextConfig, dict[str, tuple[int, ...]]]:
    """What the tensors' shapes tell; raises KeyError for a name that is missing."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _, positions, width = shapes[VISION + "pos_embed"]
    patch = shapes[VISION + "patch_embed.proj.weight"][-1]
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shapes[VISION + "blocks.0.mlp.fc1.weight"][0],
        num_hidden_layers=_layers(shapes, VISION + "blocks."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # of BLIP's own vision tower; transformers' default is 1e-5
    )
    words, hidden = shapes[TEXT + "embeddings.word_embeddings.weight"]
    text = BlipTextConfig(
        vocab_size=words,
        hidden_size=hidden,
        encoder_hidden_size=width,
        intermediate_size=shapes[TEXT + "encoder.layer.0.intermediate.dense.weight"][0],
        num_hidden_layers=_layers(shapes, TEXT + "encoder.layer."),
        num_attention_heads=hidden // HEAD_WIDTH,
        max_position_embeddings=shapes[TEXT + "embeddings.position_embeddings.weight"][0],
        bos_token_id=None,
        sep_token_id=None,
        eos_token_id=None,
        is_decoder=True,  # has it attend to the picture; the words see each other all the same
    )
    head = {
        name.removeprefix(HEAD).removesuffix(".weight"): shapes[name]
        for name in sorted(shapes)
        if name.startswith(HEAD) and name.endswith(".weight")
    }
    return vision, text, head


def _layers(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in shapes if name.startswith(prefix))


def _renamed(name: str) -> str:
    """From the released file to `RewardNetwork`."""
    if name.startswith(TEXT):
        return "text." + name.removeprefix(TEXT)
    if name.startswith(HEAD):
        return "head." + name.removeprefix(HEAD)
    rest = name.removeprefix(VISION)
    for pattern, replacement in RENAMED.items():
        if re.fullmatch(pattern, rest):
            return "vision." + re.sub(pattern, replacement, rest)
    return name
