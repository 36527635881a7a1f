"""The refiner: codes of a fine scale, given those of the same scale that are known already.

B batch, l tokens of one scale or of several, C model width, D text width, E code width, V codebook, S text token.
The transformer draws all tokens of a scale at once, each unaware of what its neighbours become. The refiner is a small
network behind it: it reads the transformer's last hidden states and the codes revealed so far, and so lets a scale be
drawn step by step (Ma et al. 2024, causal-driven stable sampling). `sampling/masked_decoding.py` does the steps,
`training/train_refiner.py` the training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.generators.config import LONGEST, check_ranges
from star.model.attention_backends import additive
from star.model.block import Block
from star.model.rope import Rotation
from star.model.tables import tables_of
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.tokenizer.scales import ScaleSchedule


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePlan:
    """How one scale is revealed."""

    scale: int  # k
    steps: int
    plain: int  # of the first steps draw from the transformer itself, and reveal twice
    shuffled: int = 5  # of the first steps reveal in random order, the others the surest tokens first

    def __post_init__(self) -> None:
        check_ranges(self, scale=(0, 2**10), steps=(0, 2**12), shuffled=(-(2**12), 2**12))
        if self.steps < 2 or not 0 <= self.plain <= self.steps or self.shuffled < 0:
            raise ValueError(
                f"the plan of scale {self.scale} has {self.steps} steps, {self.plain} plain and {self.shuffled} "
                "shuffled; it needs at least 2 steps, and not more plain ones than that"
            )


RELEASED_PLANS = (
    *(ScalePlan(scale=k, steps=8, plain=5) for k in (9, 10, 11, 12)),
    ScalePlan(scale=13, steps=15, plain=0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinerConfig:
    """Shape of the network beside the transformer's, and the scales it works on; the released 1024 px sampler's."""

    depth: int = 3
    plans: tuple[ScalePlan, ...] = RELEASED_PLANS

    def __post_init__(self) -> None:
        check_ranges(self, depth=(0, 64))
        if len(self.plans) > LONGEST:
            raise ValueError(f"{len(self.plans)} plans are given, expected at most {LONGEST}; drop some")

    def plan(self, k: int) -> ScalePlan | None:
        """How scale k is revealed; None if the transformer draws it alone."""
        return next((plan for plan in self.plans if plan.scale == k), None)


class Refiner(nn.Module):
    """Known codes and hidden states to logits. A token that stands for the text comes first in the sequence."""

    def __init__(self, config: RefinerConfig, transformer: TransformerConfig) -> None:
        """Raises ValueError if the transformer is not conditioned on text, or lacks a scale that has a plan."""
        super().__init__()
        if transformer.conditioning != "text" or transformer.positions != "rope":
            raise ValueError("a refiner needs a transformer with conditioning='text' and positions='rope'")
        self.config, self.schedule = config, transformer.schedule
        if bad := [plan.scale for plan in config.plans if not 0 < plan.scale < self.schedule.count]:
            raise ValueError(f"the refiner has a plan for scale {bad[0]} of {self.schedule.count}; drop it")
        width = transformer.width
        self.norm_eps = transformer.norm_eps
        self.text_projection = nn.Linear(transformer.text_width, width)
        self.start_position = nn.Parameter(torch.empty(1, self.schedule.lengths[0], width))
        self.code_projection = nn.Linear(transformer.code_width, width)
        self.level_embedding = nn.Embedding(self.schedule.count, width)
        self.merge = nn.Linear(2 * width, width)
        plain = replace(transformer, cross_attention=False)
        self.blocks = nn.ModuleList(Block(plain) for _ in range(config.depth))
        self.head = nn.Linear(width, transformer.tokens.outputs)
        self.tables = tables_of(transformer)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """As in the transformer: normal with std 1/sqrt(3 C), biases 0, temperatures log 4, head times 0.02."""
        std = (3 * self.head.in_features) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith("log_scale"):
                parameter.fill_(4.0).log_()
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                nn.init.trunc_normal_(parameter, std=std)
        self.head.weight.mul_(0.02)

    @torch.no_grad()
    def start_from(self, transformer: NextScaleTransformer, code_spread: float, state_spread: float) -> None:
        """Takes the transformer's own words for a start: whatever codes are known, its logits of hidden ones come out.

        Hidden states pass `merge` as they are, blocks add nothing, and the text's token and the head are the
        transformer's. Known codes are added to the states of their own tokens, as loud as those: code_spread,
        state_spread: standard deviations of codebook vectors and of the transformer's states. (Ours: as released
        everything starts at random, and what the transformer knows must be learnt again. Codes projected at random are
        a fortieth of star-emoji's states.) Where the states are not normalised before the transformer's head, here
        they are.
        """
        width = self.head.in_features
        self.code_projection.weight.normal_(std=1 / (code_spread * self.code_projection.in_features**0.5))
        self.level_embedding.weight.zero_()  # of hidden tokens, too
        self.merge.weight[:, :width].normal_(std=state_spread / width**0.5)
        self.merge.weight[:, width:].copy_(torch.eye(width))
        for block in self._blocks():
            block.attention.output.weight.zero_()
            block.mlp.down.weight.zero_()
        self.head.load_state_dict(transformer.head.state_dict())
        self.text_projection.load_state_dict(transformer.text_projection.state_dict())
        self.start_position.copy_(transformer.start_position)

    def text_token(self, pooled_BD: Tensor) -> Tensor:
        """What stands for the text: (B, S, C); S is the length of the coarsest scale, 1 in all releases."""
        return self.text_projection(pooled_BD).unsqueeze(1) + self.start_position

    def forward(
        self,
        text_BSC: Tensor,
        known_BlE: Tensor,
        known_Bl: Tensor,
        hidden_BlC: Tensor,
        span: slice,
        mask_LL: Tensor | None = None,
        schedule: ScaleSchedule | None = None,
    ) -> Tensor:
        """Float32 logits (B, l, V).

        text_BSC: of `text_token`. known_BlE: codebook vectors; known_Bl: bool, where they count. hidden_BlC: the
        transformer's, not normalised. span: which tokens of the pyramid these are. mask_LL: of `mask` if the span
        holds several scales. schedule: the grids of the pictures; squares if None.
        """
        tables = self.tables.of(schedule)
        first, device = text_BSC.shape[1], hidden_BlC.device
        codes_BlC = self.code_projection(known_BlE * known_Bl.unsqueeze(-1).to(known_BlE.dtype))
        codes_BlC = codes_BlC + self.level_embedding(tables.levels_L[span])
        codes_BLC = torch.cat((text_BSC.to(codes_BlC.dtype), codes_BlC), dim=1)
        hidden_BLC = torch.cat((text_BSC.to(hidden_BlC.dtype), hidden_BlC), dim=1)
        x_BLC = self.merge(torch.cat((codes_BLC, hidden_BLC), dim=-1))
        start, own = tables.rotation(slice(0, first)), tables.rotation(span)
        assert start is not None  # the transformer's positions are rotary
        assert own is not None
        rotation = Rotation(torch.cat((start.cos_lP, own.cos_lP)), torch.cat((start.sin_lP, own.sin_lP)))
        for block in self._blocks():
            x_BLC = block(x_BLC, rotation=rotation, mask=mask_LL)
        with torch.autocast(device.type, enabled=False):
            x_BLC = x_BLC.to(self.head.weight.dtype)
            return self.head(F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=self.norm_eps)).float()[:, first:]

    def mask(self, span: slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """For several scales at once: 0 within a scale, and between the text token and everything, else -inf.

        So the text token carries something from scale to scale, which it cannot while drawing; that is as released.
        """
        levels_l = torch.cat((torch.full((self.schedule.lengths[0],), -1), self.tables.levels_L[span].cpu()))
        text_l = levels_l == -1
        return additive((levels_l[:, None] == levels_l) | text_l[:, None] | text_l, dtype).to(self.head.weight.device)

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block


def masked_loss(logits_BlV: Tensor, codes_Bl: Tensor, known_Bl: Tensor, length: int) -> Tensor:
    """The published training objective: hidden codes cost what they cost, known ones hardly anything.

    An extra class V is the answer for known positions, where it has the logit 10 and all others 0; elsewhere its
    logit is 0. Nats, the mean over pictures of the sum over tokens divided by `length`, the L of the whole pyramid.
    """
    vocabulary, known_Bl1 = logits_BlV.shape[-1], known_Bl.unsqueeze(-1)
    extended = torch.cat((logits_BlV.masked_fill(known_Bl1, 0.0), known_Bl1 * 10.0), dim=-1)
    answers_Bl = codes_Bl.masked_fill(known_Bl, vocabulary)
    return F.cross_entropy(extended.flatten(0, 1), answers_Bl.flatten()) * codes_Bl.shape[1] / length
