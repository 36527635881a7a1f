"""Files as the authors of VAR and STAR write them, with random weights; names and shapes are spelt out here.

A small file has everything a released one has, the state of the optimiser included.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
SCALES = {256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)}


def attention(name: str, width: int, heads: int, text: int = 0) -> Shapes:
    own: Shapes = {
        f"{name}.mat_q.weight": (width, width),
        f"{name}.mat_kv.weight": (2 * width, text),
    }
    shapes: Shapes = own if text else {f"{name}.mat_qkv.weight": (3 * width, width)}
    for bias in ("q_bias", "v_bias", "zero_k_bias", "proj.bias"):
        shapes[f"{name}.{bias}"] = (width,)
    return shapes | {f"{name}.scale_mul_1H11": (1, heads, 1, 1), f"{name}.proj.weight": (width, width)}


def block(name: str, width: int, heads: int, text: int = 0) -> Shapes:
    return (
        attention(f"{name}.attn", width, heads)
        | (attention(f"{name}.cross_attn", width, heads, text) if text else {})
        | {f"{name}.ffn.fc1.weight": (4 * width, width), f"{name}.ffn.fc1.bias": (4 * width,)}
        | {f"{name}.ffn.fc2.weight": (width, 4 * width), f"{name}.ffn.fc2.bias": (width,)}
    )


def linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def star(
    depth: int = 2, width: int = 16, heads: int = 2, text: int = 32, codes: int = 32, latent: int = 4, side: int = 256
) -> Shapes:
    shapes: Shapes = {"pos_start": (1, 1, width), "class_emb.weight": (1001, width)}
    shapes["lvl_embed.weight"] = (len(SCALES[side]), width)
    for i in range(depth):
        shapes |= block(f"blocks.{i}", width, heads, text)
    shapes |= linear("word_embed", width, latent) | linear("encoder_proj", width, text)
    return shapes | linear("head_logits", codes, width)


def star_sampler(
    depth: int = 2, width: int = 16, heads: int = 2, text: int = 32, codes: int = 32, latent: int = 4
) -> Shapes:
    shapes = star(depth, width, heads, text, codes, latent, side=1024)
    shapes |= {"pos_start_last": (1, 1, width), "lvl_embed_2.weight": (len(SCALES[1024]), width)}
    for i in range(3):
        shapes |= block(f"feat_extract_blocks.{i}", width, heads)
    shapes |= linear("word_embed_head", width, latent) | linear("encoder_proj2", width, text)
    return shapes | linear("head_proj", width, 2 * width) | linear("head_logits2", codes, width)


def var(depth: int = 2, width: int = 16, heads: int = 2, codes: int = 32, latent: int = 4) -> Shapes:
    length = sum(size * size for size in SCALES[256])
    shapes: Shapes = {"pos_start": (1, 1, width), "class_emb.weight": (1001, width), "pos_1LC": (1, length, width)}
    shapes |= {"lvl_embed.weight": (10, width), "attn_bias_for_masking": (1, 1, length, length)}
    for i in range(depth):
        shapes |= block(f"blocks.{i}", width, heads) | linear(f"blocks.{i}.ada_lin.1", 6 * width, width)
    shapes |= linear("word_embed", width, latent) | linear("head_nm.ada_lin.1", 2 * width, width)
    return shapes | linear("head", codes, width)


def tokenizer(
    channels: int = 32, multipliers: tuple[int, ...] = (1, 2), codes: int = 32, latent: int = 4, scales: int = 10
) -> Shapes:
    """The released autoencoder with fewer levels or channels; 2 levels make 32 pixels of 16 x 16 codes."""
    shapes: Shapes = {}

    def conv(name: str, out: int, given: int, kernel: int = 3) -> None:
        shapes.update({f"{name}.weight": (out, given, kernel, kernel), f"{name}.bias": (out,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def residual(name: str, given: int, out: int) -> None:
        norm(f"{name}.norm1", given)
        conv(f"{name}.conv1", out, given)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if given != out:
            conv(f"{name}.nin_shortcut", out, given, 1)

    def mixing(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        conv(f"{name}.qkv", 3 * width, width, 1)
        conv(f"{name}.proj_out", width, width, 1)

    def middle(side: str, width: int) -> None:
        residual(f"{side}.mid.block_1", width, width)
        mixing(f"{side}.mid.attn_1", width)
        residual(f"{side}.mid.block_2", width, width)

    last, widest = len(multipliers) - 1, channels * multipliers[-1]
    conv("encoder.conv_in", channels, 3)
    width = channels
    for level, multiplier in enumerate(multipliers):
        for i in range(2):
            residual(f"encoder.down.{level}.block.{i}", width, channels * multiplier)
            width = channels * multiplier
            if level == last:
                mixing(f"encoder.down.{level}.attn.{i}", width)
        if level != last:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder", widest)
    norm("encoder.norm_out", widest)
    conv("encoder.conv_out", latent, widest)
    conv("decoder.conv_in", widest, latent)
    middle("decoder", widest)
    for level in range(last, -1, -1):
        for i in range(3):
            residual(f"decoder.up.{level}.block.{i}", width, channels * multipliers[level])
            width = channels * multipliers[level]
            if level == last:
                mixing(f"decoder.up.{level}.attn.{i}", width)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", width, width)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", 3, width)
    conv("quant_conv", latent, latent)
    conv("post_quant_conv", latent, latent)
    for i in range(4):
        conv(f"quantize.quant_resi.qresi_ls.{i}", latent, latent)
    return shapes | {"quantize.embedding.weight": (codes, latent), "quantize.ema_vocab_hit_SV": (scales, codes)}


def values(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under which signals neither die nor explode."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        fan = 1
        for columns in shape[1:]:
            fan *= columns
        if "norm" in name and name.endswith("weight"):
            tensors[name] = torch.ones(shape)
        elif name.endswith(("bias", "attn_bias_for_masking", "ema_vocab_hit_SV")):
            tensors[name] = torch.zeros(shape)
        elif name.endswith("scale_mul_1H11"):
            tensors[name] = torch.full(shape, 4.0).log()
        else:
            spread = 1.0 if name.endswith(("embedding.weight", "emb.weight", "embed.weight")) else fan**-0.5
            tensors[name] = torch.empty(shape).normal_(generator=generator).mul_(spread)
    return tensors


def training_state(
    transformer: dict[str, Tensor], own_tokenizer: dict[str, Tensor] | None, **config: Any
) -> dict[str, Any]:
    """What STAR's trainer saves; the optimiser has two tensors for every parameter, as Adam does."""
    moments = {
        i: {"step": torch.tensor(9.0), "exp_avg": torch.ones_like(tensor), "exp_avg_sq": torch.ones_like(tensor)}
        for i, tensor in enumerate(transformer.values())
    }
    groups = [{"lr": 1e-4, "betas": (0.9, 0.95), "params": list(moments)}]
    trainer: dict[str, Any] = {"config": {"label_smooth": 0.0, "prog_it": 0, **config}, "var_wo_ddp": transformer}
    if own_tokenizer is not None:
        trainer["vae_local"] = own_tokenizer
    trainer["var_opt"] = {"optimizer": {"state": moments, "param_groups": groups}, "scaler": {"scale": 2048.0}}
    return {"epoch": 3, "iter": 6000, "trainer": trainer}


def save(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path
