"""Training a tokenizer whose coarse codes keep the meaning that another tokenizer gave them.

B batch, E code width, h w finest latent grid of the new tokenizer, g that of the old one.

A transformer knows pictures by its tokenizer's codes, so a better tokenizer would send it back to its beginning. An
aligned one starts with the old codebook, and its latent, averaged down to the old grid, is pulled towards the old
latent. What the finer grid adds is free. `star train star --init-from` then accepts the old transformer.

Old latents and codes are divided by `scale`, so that the new latent starts near mean square 1 whatever the old one had;
a transformer that takes over multiplies by it what reads them (star/training/init_from.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from star.data.errors import InputError
from star.data.loader.batch import Batch
from star.data.tensor_cache import TensorCache
from star.tokenizer.quantizer import Quantizer
from star.tokenizer.tokenizer import AlignedTo, MultiScaleTokenizer, TokenizerConfig

KEPT = 2**30  # bytes of latents


class AlignmentTeacher:
    """The old tokenizer, whose latents the new one is aligned to.

    On a CPU, where asked for, latents are kept by picture: those used last, in `KEPT` bytes.
    """

    def __init__(self, path: str, network: TokenizerConfig, device: torch.device, *, keep: bool) -> None:
        """Raises InputError if the two cannot speak of the same codes."""
        self.tokenizer = MultiScaleTokenizer.from_directory(path, device=device)
        self.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        old, new = self.tokenizer.config, network
        if old.quantizer.bits or new.quantizer.bits:
            raise InputError(
                f"align_to {path} was given where a token is a row of bits, expected codebooks: leave align_to out"
            )
        for what, mine, theirs in (
            ("codes", new.quantizer.vocabulary, old.quantizer.vocabulary),
            ("code width", new.quantizer.code_width, old.quantizer.code_width),
            ("resolution", new.resolution, old.resolution),
            ("first scales", new.quantizer.sizes[: len(old.quantizer.sizes)], old.quantizer.sizes),
        ):
            if mine != theirs:
                raise InputError(f"align_to {path} has {what} {theirs}, this network {mine}: make them equal")
        self.device = device
        # On other devices a latent depends on the batch it was made in: kept, it would not be that of a resumed run.
        self._kept = TensorCache(KEPT) if keep and device.type == "cpu" else None
        assert isinstance(self.tokenizer.quantizer, Quantizer)
        codebook = self.tokenizer.quantizer.codebook.weight
        scale = float(codebook.square().mean().sqrt().clamp_min(1e-8))
        self.mark = AlignedTo(digest=self.tokenizer.digest, scale=scale)

    @torch.no_grad()
    def begin(self, tokenizer: MultiScaleTokenizer, *, fresh: bool) -> None:
        """Marks a tokenizer as aligned; a fresh one gets the old codebook, and the phis where there are as many."""
        tokenizer.aligned_to = self.mark
        if not fresh:
            return
        own, old = tokenizer.quantizer, self.tokenizer.quantizer
        assert isinstance(own, Quantizer)
        assert isinstance(old, Quantizer)
        own.codebook.weight.copy_(old.codebook.weight / self.mark.scale)
        if len(own.phis) == len(old.phis):
            own.phis.load_state_dict(old.phis.state_dict())
            for phi in own.phis:
                phi.bias.div_(self.mark.scale)  # type: ignore[operator]

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """The old latents over `mark.scale`, (B, E, g, g), float32."""
        if self._kept is None:
            return self._fresh(batch.image_B3HW)
        rows = {key: row for row, key in enumerate(batch.keys)}
        found = self._kept.of(
            batch.keys, lambda keys: [(self._fresh(batch.image_B3HW[rows[key], None])[0],) for key in keys]
        )
        return torch.stack([found[key][0] for key in batch.keys])

    def _fresh(self, image_B3HW: Tensor) -> Tensor:
        image_B3HW = image_B3HW.to(self.device).contiguous(memory_format=torch.channels_last)
        return self.tokenizer.image_to_latent(image_B3HW) / self.mark.scale


def alignment_loss(latent_BEhw: Tensor, old_BEgg: Tensor) -> Tensor:
    """Squared error of the averaged latent, as a share of the old latent's mean square."""
    averaged_BEgg = F.interpolate(latent_BEhw.float(), size=old_BEgg.shape[-2:], mode="area")
    return F.mse_loss(averaged_BEgg, old_BEgg) / old_BEgg.square().mean().clamp_min(1e-8)
