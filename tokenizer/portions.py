"""How many pictures are computed at once where no batch size says so: as many as fit into a number of bytes.

A tokenizer at 1024 pixels has maps of 0.67 GB for each picture, several of them at once, so what is done with 64
pictures at 64 pixels is done with one there. The same numbers stand in `star plan`.
"""

from star.tokenizer.autoencoder import AutoencoderConfig

BUDGET = 4 * 2**30  # bytes of the device for maps, or states, beside the weights
PIXELS = 256 * 2**20  # bytes of the main memory for the pictures of one batch
MOST = 64  # pictures; more of them make nothing faster


def at_once(bytes_each: int, budget: int = BUDGET, most: int = MOST) -> int:
    """Pictures (or whatever takes so many bytes) at once: at least 1, at most `most`."""
    return max(1, min(most, budget // max(1, bytes_each)))


def loaded_at_once(resolution: int, most: int = MOST) -> int:
    """Pictures of a batch that is only read, float32."""
    return at_once(12 * resolution**2, PIXELS, most)


def map_bytes(config: AutoencoderConfig, resolution: int) -> int:
    """Bytes of the maps that encoding or decoding one picture has at once, without gradients, at most, in float32.

    A residual block holds its input, the normalised one, its SiLU, that padded or laid out anew, and the convolution's
    result: five maps of a level's width, of which the decoder's input comes from the next, wider level. Attention on
    the coarsest grid holds ten: its input, that normalised, queries, keys and values twice, and the result twice.
    """
    last = len(config.multipliers) - 1
    maps = []
    for level, multiplier in enumerate(config.multipliers):
        wider = max(multiplier, config.multipliers[min(level + 1, last)])
        side = resolution // config.patch // 2**level
        maps.append((10 * multiplier if level == last else 4 * multiplier + wider) * config.channels * side**2)
    return 4 * max(maps)
