"""CLIP's text tower on torch alone: the arithmetic of transformers' CLIPTextModel, to the bit, without the library.

B batch, T text tokens, D text width, N heads, d = D / N. Radford et al. 2021, §2.4.
Weights have the library's names, which in a whole CLIP and in files of older versions begin with "text_model.".
Importing transformers takes longer than drawing a picture; `reads` tells which folders can do without it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.files import check_safetensors, read_json
from star.data.unfilled import fill, unfilled

DUAL = "vision-text-dual-encoder"
PAIRS = ("clip", DUAL)  # a text tower and an image tower; the text's is described in `text_config`
KINDS = (*PAIRS, "clip_text_model")
PREFIX = "text_model."
LEGACY_EOS = 2  # what configurations before transformers 4.31 say: EOS is then the highest id


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu, "silu": F.silu}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTextConfig:
    """The library's names and defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407

    model_type = "clip_text_model"

    def __post_init__(self) -> None:
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} in {self.num_attention_heads} heads")


class TowerOutput(NamedTuple):
    """States of all tokens (B, T, D) after the last norm, and those at EOS (B, D)."""

    last_hidden_state: Tensor
    pooler_output: Tensor


class _Embeddings(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids_BT: Tensor) -> Tensor:
        positions_1T = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        return self.token_embedding(ids_BT) + self.position_embedding(positions_1T)


class _Attention(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        queries, keys, values = (
            layer(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, T, d)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask_B1TT, scale=queries.shape[-1] ** -0.5, is_causal=mask_B1TT is None
        )
        return self.out_proj(mixed.transpose(1, 2).reshape(x_BTD.shape).contiguous())


class _Mlp(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_BTD)))


class _Layer(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BTD: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.layer_norm1(x_BTD), mask_B1TT)
        return x_BTD + self.mlp(self.layer_norm2(x_BTD))


class _Encoder(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x_BTD: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask_B1TT)
        return x_BTD


class ClipTextTower(nn.Module):
    """Embeddings, causal transformer, last norm."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> TowerOutput:
        """ids (B, T) int64; mask (B, T), 0 at padding, which no token then reads."""
        length, mask_B1TT = input_ids.shape[1], None
        if not bool(attention_mask.all()):
            causal_TT = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
            mask_B1TT = causal_TT & attention_mask.bool()[:, None, None, :]
        hidden_BTD = self.final_layer_norm(self.encoder(self.embeddings(input_ids), mask_B1TT))
        legacy = self.config.eos_token_id == LEGACY_EOS
        found_BT = input_ids.int() if legacy else (input_ids == self.config.eos_token_id).int()
        rows_B = torch.arange(len(input_ids), device=input_ids.device)
        return TowerOutput(hidden_BTD, hidden_BTD[rows_B, found_BT.argmax(dim=-1)])

    @property
    def device(self) -> torch.device:
        return self.final_layer_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.final_layer_norm.weight.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of tokens."""
        return self.embeddings.token_embedding

    @classmethod
    def from_folder(cls, folder: Path, source: str | Path) -> Self:
        """Reads config.json and safetensors files, each weight in the type it was stored in.

        source: what the folder is called in complaints. Raises InputError for weights that are missing, of another
        shape, infinite or not a number.
        """
        with unfilled():
            tower = cls(config_of(folder))
        shapes = {name: value.shape for name, value in tower.state_dict().items()}
        tensors: dict[str, Tensor] = {}
        for file in weight_files(folder):
            check_safetensors(file)
            with safe_open(file, framework="pt") as stored:
                for name in list(stored.keys()):
                    if (own := name.removeprefix(PREFIX)) in shapes:
                        tensors[own] = stored.get_tensor(name)
        missing = sorted(name for name in shapes if name not in tensors or tensors[name].shape != shapes[name])
        if missing:
            raise InputError(f"{source} lacks weights of its text tower, {missing[0]} first of {len(missing)}.")
        fill(tower, tensors)
        return tower

    def save_pretrained(self, path: str | Path) -> None:
        """Writes config.json and model.safetensors, which the library's CLIPTextModel reads, too."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {"architectures": ["CLIPTextModel"], "model_type": self.config.model_type}
        values |= asdict(self.config) | {"dtype": str(self.dtype).removeprefix("torch.")}
        (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone


def reads(folder: Path) -> bool:
    """Whether the tower of a folder can be had without the library: a CLIP with nothing unknown in its description."""
    values = read_json(folder / "config.json")
    if values.get("model_type") not in KINDS or values.get("text_config_dict"):
        return False
    if values["model_type"] == DUAL and (values.get("text_config") or {}).get("model_type") != "clip_text_model":
        return False
    own = _own_values(values)
    kinds = {"hidden_act": str, "layer_norm_eps": (float, int), "pad_token_id": (int, type(None))}
    kinds["bos_token_id"] = (int, type(None))
    typed = all(isinstance(value, kinds.get(name, int)) for name, value in own.items())  # type: ignore[arg-type]
    return typed and own.get("hidden_act", "quick_gelu") in ACTIVATIONS


def config_of(folder: Path) -> ClipTextConfig:
    """Of a tower, or of the text side of a whole CLIP."""
    return ClipTextConfig(**_own_values(read_json(folder / "config.json")))


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise FileNotFoundError(f"no {single.name} in {folder}")
    return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]


def _own_values(values: Mapping[str, Any]) -> dict[str, Any]:
    inner = values.get("text_config", values) if values.get("model_type") in PAIRS else values
    known = {one.name for one in fields(ClipTextConfig)}
    return {name: value for name, value in (inner or {}).items() if name in known}
