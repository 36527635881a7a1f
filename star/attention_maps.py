"""Where a STAR model looks in the prompt while it draws: the weights of its cross-attention, scale by scale.

    maps = attention(generator, "a red apple", seed=3, options=options)
    maps.of_word("apple")               # K maps (h, w): how much of each place's attention the word gets
    maps.tokens, maps.weights[k]        # per token: (l, T), rows that sum to 1

A hook on each cross-attention layer sees what goes in and computes the weights of that very pass, softmax(q k + mask);
they are averaged over heads and layers. The first and last token of a prompt (begin and end) usually get most of them.

l tokens of one scale, T text tokens, N heads, h w grid of one scale, K scales, k scale index, H W pixels, 3 RGB.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from star.calls import watcher
from star.data.errors import InputError
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.model.attention import CrossAttention
from star.model.linear import dense
from star.model.packed_text import PackedText
from star.sampling.sampler import SampleRng


@dataclass(frozen=True, slots=True)
class AttentionMaps:
    """What was read while one picture was drawn.

    tokens: of the prompt, begin and end included, as the tokenizer writes them. weights: K tensors (l, T), float32, T
    as long as the encoder pads; each row sums to 1, padding is 0. grids: (h, w) of the scales. pixels: K pictures
    (3, H, W), uint8, what was known after each scale. spans: for each word of the prompt, its tokens' places.
    """

    prompt: str
    tokens: list[str]
    weights: list[Tensor]
    grids: list[tuple[int, int]]
    pixels: list[Tensor]
    spans: dict[str, list[int]]

    def of_word(self, word: str) -> list[Tensor]:
        """K maps (h, w): the share of attention that a word of the prompt gets, wherever it stands.

        Raises InputError that names the words if it is not in the prompt.
        """
        places = self.spans.get(word.lower().strip())
        if not places:
            known = ", ".join(self.spans)
            raise InputError(f"the word {word!r} was asked for, expected one of the prompt: {known}")
        return [
            weights_lT[:, places].sum(dim=1).view(grid)
            for weights_lT, grid in zip(self.weights, self.grids, strict=True)
        ]


@torch.inference_mode()
def growth(generator: StarGenerator, caption: str, *, seed: int, options: SampleOptions) -> list[Tensor]:
    """What is known of a caption's picture after each of K scales, (3, H, W) uint8; last, the whole."""
    text, pixels = generator.text_encoder.encode([caption]), list[Tensor]()
    watch = watcher(generator, options, lambda _k, pixels_3HW: pixels.append(pixels_3HW))
    generator.draw_one(text, SampleRng([seed], options), watch=watch, caption=caption)
    return pixels


@torch.inference_mode()
def attention(generator: StarGenerator, prompt: str, *, seed: int, options: SampleOptions) -> AttentionMaps:
    """Draws the picture of a prompt and seed, and tells what it read: the caption where the prompt was expanded."""
    prompt = generator.expanded(prompt, options)
    text = generator.text_encoder.encode([prompt])
    with _recorded(generator.transformer_for(prompt)) as passes:
        pixels = growth(generator, prompt, seed=seed, options=options)
    if not passes:
        raise InputError("this model has no cross-attention, expected one that reads words: load another one")
    # Each layer was called once for each scale, in their order.
    weights = [torch.stack(layers).mean(dim=0) for layers in zip(*passes.values(), strict=True)]
    ids = generator.text_encoder.tokenize([prompt])[0][0, : int(text.mask_BT.sum())].tolist()
    written = {number: token for token, number in generator.text_encoder.tokenizer.get_vocab().items()}
    tokens = [written[number] for number in ids]
    grids = list(generator.schedule_for(options).grids)
    return AttentionMaps(prompt, tokens, weights, grids, pixels, _spans(generator, prompt, ids))


def weights_of(module: CrossAttention, x_BlC: Tensor, keys_BNTd: Tensor, mask_B11T: Tensor) -> Tensor:
    """The attention weights (B, N, l, T), float32, of a layer for what it is given; see CrossAttention.forward."""
    queries_BNld = module.split(dense(module.query, x_BlC, module.query_bias))
    scores_BNlT = module.shape_queries(queries_BNld, None).float() @ keys_BNTd.float().transpose(-2, -1) * module.scale
    return (scores_BNlT + mask_B11T.float()).softmax(dim=-1)


@contextmanager
def _recorded(transformer: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """For each cross-attention layer the weights (l, T) of the first row, the prompt's, pass by pass; mean of heads."""
    passes: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def record(module: CrossAttention, given: tuple[Any, ...], _output: Tensor) -> None:
            x_BlC, keys_BNTd = given[0][:1], given[1][:1]  # packed, too, the first row's words are the first
            packed = isinstance(given[3], PackedText)
            mask_B11T = given[3].first_mask_111T(keys_BNTd.shape[2]) if packed else given[3][:1]
            passes.setdefault(name, []).append(weights_of(module, x_BlC, keys_BNTd, mask_B11T)[0].mean(dim=0).cpu())

        return record

    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, CrossAttention)}
    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _spans(generator: StarGenerator, prompt: str, ids: Sequence[int]) -> dict[str, list[int]]:
    """Where each word of the prompt stands among its tokens, in all its places; commas and the like come off."""
    found: dict[str, list[int]] = {}
    for word in prompt.split():
        clean = word.lower().strip(" .,;:!?\"'()")
        own = generator.text_encoder.tokenize([clean])
        inner = own[0][0, 1 : int(own[1].sum()) - 1].tolist() if clean else []
        starts = [i for i in range(len(ids)) if inner and list(ids[i : i + len(inner)]) == inner]
        if starts:
            found[clean] = [i + j for i in starts for j in range(len(inner))]
    return found
