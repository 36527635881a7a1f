"""How the codebook learns, and what keeps it alive at every scale.

B batch, E code width, V codebook, l tokens of one scale, K scales, k scale index.

Two rules. "gradient" is the published one: the second term of the quantiser's loss pulls codes and phi towards the
latent (Tian et al. 2024; van den Oord et al. 2017, §3.2). "ema" is ours for training from scratch: each code is the
running mean of the vectors that chose it (van den Oord et al. 2017, App. A.1), with two changes that address the
best-known failure of multi-scale tokenizers, coarse scales that use a handful of codes:

- Votes are balanced over scales. Scale k has l_k votes per picture, so the finest grid would outvote the 1x1 grid 64 to
  one and drag every code that both use to its own needs; a vote of scale k weighs l_k ** -balance instead.
- Codes restart where diversity is missing. A code is dead when no scale uses it, measured by each scale's own
  share, so a code that only the 1x1 grid uses is not dead. Dead codes move onto vectors of the batch, drawn from a
  scale chosen uniformly, not from all tokens pooled. And as long as a scale uses fewer than `scale_floor` of the
  codebook, the codes that are used least move to that scale's vectors, a few in each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from star.tokenizer.quantizer import Pyramid, Quantizer
from star.tokenizer.tokens import Codes, CodeUsage


@dataclass(frozen=True, kw_only=True, slots=True)
class CodebookConfig:
    """rule: "ema" or "gradient". decay: of the running means, per step. balance: 0 counts votes equally, 1 gives every
    scale the same weight. restart_below: a code is dead if its share of the votes is below this part of an equal share
    at every scale. restart_fraction: at most this part of the codebook restarts in one step. scale_floor: part of the
    codebook that every scale should use; 0 asks for nothing. floor_moves: codes moved per step for each
    scale that uses fewer. hold: steps before a codebook that means something already begins to move; until then latents
    move towards it."""

    rule: str = "ema"
    decay: float = 0.99
    balance: float = 0.5
    restart_below: float = 0.02
    restart_fraction: float = 0.05
    scale_floor: float = 0.2
    floor_moves: int = 1
    hold: int = 0

    def __post_init__(self) -> None:
        if self.rule not in ("ema", "gradient"):
            raise ValueError(f"codebook rule {self.rule!r} given, expected 'ema' or 'gradient'")


class CodebookTrainer(nn.Module):
    """Running statistics of a quantizer's codebook; call `update` after each training step's encode.

    hits_KV: running mean of each code's choices per step and scale; it is also what usage plots show.
    """

    hits_KV: Tensor
    cluster_size_V: Tensor
    sums_VE: Tensor
    cooldown_V: Tensor
    steps: Tensor

    def __init__(self, quantizer: Quantizer, config: CodebookConfig, *, known: bool = False) -> None:
        """known: the codebook means something already; it counts as having had an equal share of the votes so far.
        Otherwise the first batch alone decides what it becomes."""
        super().__init__()
        self.known = known
        self.moves: list[nn.Module] = [quantizer.codebook] if config.rule == "ema" else []  # by the rule, no gradient
        V, E = quantizer.codebook.weight.shape
        self.config = config
        self.register_buffer("hits_KV", torch.zeros(quantizer.schedule.count, V))
        self.register_buffer("cluster_size_V", torch.zeros(V))
        self.register_buffer("sums_VE", torch.zeros(V, E))
        self.register_buffer("cooldown_V", torch.zeros(V, dtype=torch.int64))  # steps until a code may move again
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Checkpoints of earlier versions call the statistics by other names."""
        for old, new in (("votes_V", "cluster_size_V"), ("grace_V", "cooldown_V")):
            if prefix + old in state_dict:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def update(self, quantizer: Quantizer, pyramid: Pyramid) -> int:
        """One step of the rule; changes the codebook in place under "ema". Returns how many codes restarted.

        With several processes the statistics are summed over them, and rank 0 chooses where dead codes go.
        """
        V = quantizer.config.vocabulary
        weights = [length**-self.config.balance for length in quantizer.schedule.lengths]
        counts_KV = torch.stack([torch.bincount(c.flatten(), minlength=V).float() for c in pyramid.codes])
        sums_VE = torch.zeros_like(self.sums_VE)
        for codes_Bl, target_BlE, weight in zip(pyramid.codes, pyramid.targets, weights, strict=True):
            sums_VE.index_add_(0, codes_Bl.flatten(), target_BlE.flatten(0, 1).float() * weight)
        cluster_size_V = (counts_KV * counts_KV.new_tensor(weights)[:, None]).sum(0)
        for statistic in (counts_KV, sums_VE, cluster_size_V):
            all_reduce(statistic)

        begun, held = int(self.steps) > 0, self.known and int(self.steps) < self.config.hold
        first = not begun and not self.known
        if self.known and int(self.steps) == self.config.hold:
            self.cluster_size_V.fill_(float(cluster_size_V.mean()))
            self.sums_VE.copy_(self.cluster_size_V[:, None] * quantizer.codebook.weight)
        if not begun:
            self.hits_KV.copy_(counts_KV.mean(1, keepdim=True).expand_as(counts_KV) if self.known else counts_KV)
        self.steps += 1
        self.cooldown_V.sub_(1).clamp_min_(0)
        self.hits_KV.lerp_(counts_KV, 1 - self.config.decay)
        if self.config.rule == "gradient" or held:
            return 0
        decay = 0.0 if first else self.config.decay
        self.cluster_size_V.lerp_(cluster_size_V, 1 - decay)
        self.sums_VE.lerp_(sums_VE, 1 - decay)
        means_VE = self.sums_VE / self.cluster_size_V.clamp_min(1e-6)[:, None]
        alive_V = self.cluster_size_V > 1e-4
        book_VE = quantizer.codebook.weight
        book_VE.copy_(torch.where(alive_V[:, None], means_VE.to(book_VE.dtype), book_VE))

        share_KV = self.hits_KV * V / self.hits_KV.sum(1, keepdim=True).clamp_min(1e-12)  # 1: an equal share
        dead = (share_KV.amax(0) < self.config.restart_below).nonzero()[:, 0]
        if not first:
            dead = dead[torch.randperm(len(dead), device=dead.device)[: max(1, int(self.config.restart_fraction * V))]]
        scale_of = torch.randint(len(counts_KV), (len(dead),), device=dead.device)
        if not first and self.config.scale_floor > 0:
            short = ((share_KV > self.config.restart_below).sum(1) < self.config.scale_floor * V).nonzero()[:, 0]
            moved = self._least_used(dead, len(short) * self.config.floor_moves)
            dead = torch.cat([dead, moved])
            scale_of = torch.cat([scale_of, short.repeat_interleave(self.config.floor_moves)[: len(moved)]])
        if len(dead):
            self._restart_codes(quantizer, dead, scale_of, pyramid.targets)
        return len(dead)

    def usage(self) -> CodeUsage:
        """Codes in use: those chosen at least once per 100 steps lately."""
        hits_KV = self.hits_KV.cpu()
        return Codes(hits_KV.shape[1]).usage(hits_KV, threshold=0.01)

    def regulariser(self, quantizer: Quantizer, latent_BEhw: Tensor, pyramid: Pyramid) -> None:
        """Nothing: codes have no loss beside the quantisation loss."""

    def _least_used(self, dead: Tensor, count: int) -> Tensor:
        """The `count` living codes with the smallest clusters, among those whose cooldown is over."""
        cluster_size_V = self.cluster_size_V.clone()
        cluster_size_V[dead] = torch.inf
        cluster_size_V[self.cooldown_V > 0] = torch.inf
        order = cluster_size_V.argsort()[:count]
        return order[cluster_size_V[order] < torch.inf]

    def _restart_codes(self, quantizer: Quantizer, dead: Tensor, scale_of: Tensor, targets: Sequence[Tensor]) -> None:
        """Moves each of the codes onto a vector of this batch, at the scale given for it."""
        new_VE = torch.empty(len(dead), self.sums_VE.shape[1], device=dead.device)
        for k, target_BlE in enumerate(targets):
            chosen = (scale_of == k).nonzero()[:, 0]
            vectors = target_BlE.flatten(0, 1).float()
            new_VE[chosen] = vectors[torch.randint(len(vectors), (len(chosen),), device=dead.device)]
        _broadcast(dead)
        _broadcast(scale_of)
        _broadcast(new_VE)
        quantizer.codebook.weight[dead] = new_VE.to(quantizer.codebook.weight.dtype)
        size = float(self.cluster_size_V.median())
        self.cluster_size_V[dead] = size
        self.sums_VE[dead] = new_VE * size
        # a fresh code counts as used a little where it restarted, until its own record decides
        self.hits_KV[:, dead] = 0
        self.hits_KV[scale_of, dead] = (
            4 * self.config.restart_below * self.hits_KV.sum(1)[scale_of] / len(self.cluster_size_V)
        )
        self.cooldown_V[dead] = round(2 / max(1 - self.config.decay, 1e-3))


def all_reduce(tensor: Tensor) -> None:
    """The sum over all processes, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)


def _broadcast(tensor: Tensor) -> None:
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(tensor, src=0)
