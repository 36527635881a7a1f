"""Memory of one training step of the next-scale transformer on one device, counted from its shape.

| kind        | what                                                                     | bytes                       |
|-------------|--------------------------------------------------------------------------|-----------------------------|
| weights     | float32; in pieces over the devices with FSDP2                           | 4 each                      |
| moments     | AdamW's two                                                              | 8 each                      |
| averaged    | the EMA                                                                  | 4 each                      |
| gradients   | float32                                                                  | 4 each                      |
| gathered    | with FSDP2 the block that computes, the next, and what is in no block    | 4 each                      |
| lowered     | the copies that bfloat16 autocast makes of matrices: of all, as the      | 2 each                      |
|             | backward pass needs them; of one block with FSDP2 and checkpointing      |                             |
| activations | what the backward pass needs of every block, or of one with checkpointing | see `_block`               |
| logits      | float32: themselves, their log-softmax, the gradients of both; some      | 16 for each token and code, |
|             | tokens at a time                                                         | up to 1 GiB                 |

Not all of it is there at once: the peak is either where the loss begins to go backward, or where the last gradient is
computed. Kernels' own workspaces, the allocator's waste and the data are not in it.

B batch, L tokens that take part, T text tokens, C model width, N heads, d = C / N, V codebook.
"""

from dataclasses import dataclass, fields, replace
from functools import cache

import torch

from star.model.losses import tokens_at_once
from star.model.refiner import Refiner, RefinerConfig
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.planning.flops import SCALE_BY_SCALE
from star.tokenizer.portions import at_once


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one device by kind; `peak` is what is there at once."""

    weights: int
    moments: int
    averaged: int
    gradients: int
    gathered: int
    lowered: int
    activations: int
    logits: int
    peak: int

    def kinds(self) -> dict[str, int]:
        """Everything but the peak, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "peak"}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters: of the network, of one block, of the classifier, and of all matrices."""

    total: int
    block: int
    head: int
    matrices: int

    @classmethod
    @cache
    def of(cls, config: TransformerConfig) -> "Parameters":
        """Counted on a network without memory."""
        with torch.device("meta"):
            network = NextScaleTransformer(config)
        matrices = sum(module.weight.numel() for module in network.modules() if isinstance(module, torch.nn.Linear))
        return cls(
            sum(parameter.numel() for parameter in network.parameters()),
            sum(parameter.numel() for parameter in network.blocks[0].parameters()),
            sum(parameter.numel() for parameter in network.head.parameters()),
            matrices,
        )


def memory(
    network: TransformerConfig,
    lengths: tuple[int, ...],
    text_tokens: int,
    *,
    batch: int,
    half: bool,
    pieces: int = 1,
) -> Memory:
    """Of a step with `batch` pictures on the device, whose scales take part with so many tokens.

    half: bfloat16 autocast. pieces: devices that weights and all that goes with them are cut over.
    """
    count = Parameters.of(network)
    tokens = batch * sum(lengths)
    element = 2 if half else 4
    gathered = 4 * (2 * count.block + count.total - network.depth * count.block) if pieces > 1 else 0
    lowered = 0
    if half:
        lowered = 2 * (count.block if pieces > 1 and network.checkpointing else count.matrices)
    weights, moments, averaged, gradients = (share * -(-count.total // pieces) for share in (4, 8, 4, 4))
    block = _block(network, lengths, text_tokens, batch, half)
    copies = 5 if network.attention in ("flash", "auto") else 3  # of packed words keys and values are copied
    stream, text = 4 * tokens * network.width, copies * batch * text_tokens * network.width * element
    kept = stream if network.checkpointing else block
    ends = 2 * stream + (4 * sum(lengths) ** 2 if network.attention in ("sdpa", "eager") else 0)
    # With checkpointing one block is there whole, but only once the logits have gone.
    all_kept = network.depth * (kept + (0 if network.checkpointing else text)) + ends
    # Logits of so many tokens at a time; in parts, each is made a second time when its loss goes backward.
    logits = 4 * min(tokens, batch * max(1, tokens_at_once(network.tokens.outputs) // batch)) * network.tokens.outputs
    # The gradient of what GELU gives takes the place of its value; beside it, that of the stream.
    at_work = round(network.width * network.mlp_ratio) * tokens * element + stream
    one = block + text if network.checkpointing else 0
    static = weights + moments + averaged + gathered + lowered
    head, own = 4 * count.head // pieces, 4 * count.block // pieces
    peak = static + max(
        all_kept + 4 * logits,  # log-softmax goes backward
        all_kept + logits + head + one + at_work,  # the last block does
        block + text + ends + logits + gradients - own + at_work,  # the first block does, after all others
    )
    return Memory(
        weights=weights,
        moments=moments,
        averaged=averaged,
        gradients=gradients,
        gathered=gathered,
        lowered=lowered,
        activations=all_kept + one,
        logits=4 * logits,
        peak=peak,
    )


def refiner_parameters(network: TransformerConfig, refiner: RefinerConfig) -> int:
    """Numbers of parameters of a refiner behind such a network, counted on one without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Refiner(refiner, network).parameters())


def refiner_memory(
    network: TransformerConfig, refiner: RefinerConfig, *, batch: int, half: bool, pieces: int = 1
) -> Memory:
    """Of a step that trains a refiner behind a network: `batch` pictures times masks. The whole network is on each
    device, and what its forward pass takes at once is less than what the refiner keeps for its backward pass.

    Counted as a transformer of the refiner's depth on the refined scales, whose blocks read text, which is a little
    more than the refiner's own keep.
    """
    first = min(plan.scale for plan in refiner.plans)
    lengths = tuple(length + network.schedule.lengths[0] for length in network.schedule.lengths[first:])
    alone = replace(network, depth=refiner.depth, cross_attention=False, checkpointing=False, attention="scalewise")
    counted, before = memory(alone, lengths, 0, batch=batch, half=half, pieces=pieces), Parameters.of(network)
    more = refiner_parameters(network, refiner) - Parameters.of(alone).total
    frozen, lowered, own = 4 * before.total, 2 * before.matrices if half else 0, -(-more // pieces)
    return replace(
        counted,
        weights=counted.weights + frozen + 4 * own,
        moments=counted.moments + 8 * own,
        averaged=counted.averaged + 4 * own,
        gradients=counted.gradients + 4 * own,
        lowered=counted.lowered + lowered,
        peak=counted.peak + frozen + lowered + 20 * own,
    )


def looked_bytes(network: TransformerConfig, *, half: bool) -> int:
    """Bytes that the losses of one picture take at once without gradients, all scales, beside weights and logits.

    The MLP holds the stream, the normalised stream (and a copy in the type of products), its hidden channels before and
    after GELU; self-attention the stream and, at most, what makes 14 of its size in the type of products.
    """
    tokens, width, element = network.schedule.length, network.width, 2 if half else 4
    mlp = 8 + element * (1 + 2 * network.mlp_ratio)
    found = tokens * width * round(max(mlp, 8 + 14 * element))
    if network.attention == "eager":
        found += 2 * element * network.heads * tokens**2
    return found


def looked_at_once(network: TransformerConfig, *, half: bool) -> int:
    """Held-out pictures whose losses are computed at once."""
    return at_once(looked_bytes(network, half=half))


def looking(network: TransformerConfig, *, half: bool, pieces: int = 1) -> tuple[int, int]:
    """Held-out pictures at once, and the bytes that computing their losses takes beside the weights and moments."""
    count, pictures = Parameters.of(network), looked_at_once(network, half=half)
    tokens = min(tokens_at_once(network.tokens.outputs), pictures * network.schedule.length)
    found = pictures * looked_bytes(network, half=half) + 8 * tokens * network.tokens.outputs
    found += 4 * (2 * count.block + count.total - network.depth * count.block) if pieces > 1 else 0
    found += 2 * (count.block if pieces > 1 else count.matrices) if half else 0
    return pictures, found + (4 * network.schedule.length**2 if network.attention in ("sdpa", "eager") else 0)


def _block(network: TransformerConfig, lengths: tuple[int, ...], text_tokens: int, batch: int, half: bool) -> int:
    """Bytes that one block keeps for its backward pass, counted in units of B L C.

    | of               | always float32            | in the type of products                                         |
    |------------------|---------------------------|-----------------------------------------------------------------|
    | three LayerNorms | 3 inputs                  | 3 outputs, as inputs of matrices                                |
    | self-attention   | 2 unit queries and keys   | 3 what one product gives; 1 scaled queries; 1 result; bfloat16: |
    |                  |                           | 1 a copy of the keys                                            |
    | cross-attention  | 1 unit queries            | 1 scaled queries; 1 result                                      |
    | MLP              |                           | 2 mlp_ratio, before and after GELU                              |
    """
    tokens, width = batch * sum(lengths), network.width
    element = 2 if half else 4
    full, products = 6, 10 + 2 * network.mlp_ratio
    if half:
        products += 1
    if network.attention in SCALE_BY_SCALE:
        products += 1  # the scales' results, and all of them in one
    bytes_kept = round(tokens * width * (4 * full + element * products))
    # Means, deviations, lengths and sums of exponentials; the turns of queries and of keys as complex numbers.
    bytes_kept += 4 * tokens * (6 + 5 * network.heads) + 2 * 4 * sum(lengths) * network.head_width
    if network.attention == "eager":
        # The probabilities. Products copy heads to lie side by side, which lets queries, keys and values as one go.
        scores = batch * network.heads * sum(lengths) * (sum(lengths) + text_tokens)
        bytes_kept += element * (scores - tokens * width)
    return bytes_kept
