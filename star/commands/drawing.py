"""Options that every command which draws has, and what it makes of them."""

import argparse
from typing import Any

from star.generators.renamed import refuse_old_options

OPTIONS = (
    "guidance_scale",
    "guidance_ramp",
    "top_k",
    "top_p",
    "truncation",
    "temperature",
    "temperature_decay",
    "cross_attention",
    "refine",
    "size",
    "expand_prompt",
    "related_captions",
    "layout_scales",
    "layout_weight",
)
LARGEST_SEED = 2**63 - 1  # as star.generators.protocol has it; not imported from there, since help must be instant
DEFAULT_MODEL = "star-emoji"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The fields of SampleOptions; what is not given is as the model recommends."""
    parser.add_argument("--guidance-scale", type=float, help="how far to follow the prompt; 1 is the prompt alone")
    parser.add_argument(
        "--guidance-ramp",
        type=float,
        help="of STAR: share of the guidance that the coarsest scale lacks; 0 guides all alike",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest codes; 0 keeps all")
    parser.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest codes that reach this share")
    parser.add_argument("--temperature", type=float, help="below 1 is safer, above 1 more varied")
    parser.add_argument(
        "--temperature-decay",
        type=float,
        help="of STAR: share of the temperature that the finest scale lacks; 0 is none",
    )
    parser.add_argument("--truncation", type=float, help="of GANs: 1 draws from all, 0 the mean picture")
    parser.add_argument(
        "--cross-attention",
        choices=("released", "per-sample"),
        help="whose words the unconditional half reads: the prompt's, as released, or its own (default: the model's)",
    )
    parser.add_argument(
        "--no-refine", dest="refine", action="store_const", const=False, help="leave a checkpoint's refiner unused"
    )
    parser.add_argument("--size", metavar="HxW", help="of STAR: pixels as 56x84, or an aspect width:height as 3:2")
    parser.add_argument(
        "--expand-prompt",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="of STAR with wordings: draw the caption that a prompt means (star-emoji does), or the prompt as it is",
    )
    parser.add_argument(
        "--related-captions",
        type=int,
        metavar="N",
        help="of STAR with wordings: captions in N other styles that help with the layout of a subject which was not "
        "learnt in the style asked for; 0 is none",
    )
    parser.add_argument("--layout-scales", type=int, metavar="N", help="the coarsest scales that hear these captions")
    parser.add_argument("--layout-weight", type=float, metavar="W", help="their say there, of 1")
    refuse_old_options(parser)


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The options of drawing that were given, by their names in SampleOptions."""
    return {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
