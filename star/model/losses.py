"""Cross-entropies of tokens. B batch, L tokens, V codebook."""

import torch.nn.functional as F
from torch import Tensor

LOGITS = 2**30  # bytes: logits in float32, their log-softmax, and the gradients of both


def token_losses(logits_BLV: Tensor, codes_BL: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of every token in nats, float32 (B, L)."""
    flat = F.cross_entropy(
        logits_BLV.flatten(0, 1).float(), codes_BL.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return flat.view(codes_BL.shape)


def tokens_at_once(vocabulary: int) -> int:
    """Tokens whose logits are computed together, so that these with all that their loss needs take 1 GiB."""
    return max(1, LOGITS // (16 * vocabulary))
