"""What the papers report about their own models, to stand near our measurements and never among them.

Each line is as its source gives it: other prompts, other resize rules, other machines. A figure of one paper's table
about another's model says so.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedNumbers:
    """Figures of one system on one benchmark, digits as published."""

    system: str
    benchmark: str
    figures: dict[str, str]
    speed: str = ""
    source: str


STAR = "Ma et al. 2024, arXiv 2406.10797"
VAR = "Tian et al. 2024, arXiv 2404.02905, and its README"
SWITTI = "Voronov et al. 2024, arXiv 2412.01819"
HART = "Tang et al. 2024, arXiv 2410.10812"
INFINITY = "Han et al. 2024, arXiv 2412.04431"
STYLEGAN_T = "Sauer et al. 2023, arXiv 2301.09515"
STYLENAT = "Walton et al. 2022, arXiv 2211.05770"
STYLEFORMER = "Park and Kim 2021, arXiv 2106.07023"
COCO = "COCO, zero-shot, 30k"
OF_SWITTI = "as measured for the table of Switti (A100, batch 8)"

PUBLISHED: tuple[PublishedNumbers, ...] = (
    PublishedNumbers(
        system="STAR d30, 512",
        benchmark="MJHQ-30k",
        figures={"FID": "4.73", "CLIP score": "0.291", "ImageReward": "0.87"},
        speed="2.9 s",
        source=f"first version of {STAR}",
    ),
    PublishedNumbers(system="STAR d30, 1024", benchmark="", figures={}, speed="2.21 s (A100)", source=STAR),
    PublishedNumbers(
        system="Switti 2.5B, 512",
        benchmark="MJHQ-30k",
        figures={"FID": "9.5", "CLIP score": "0.381", "ImageReward": "0.91", "GenEval": "0.62"},
        speed="0.1 s (A100, batch 8)",
        source=SWITTI,
    ),
    PublishedNumbers(
        system="Switti 2.5B, 1024",
        benchmark="MJHQ-30k",
        figures={"FID": "8.1", "CLIP score": "0.378", "ImageReward": "0.81"},
        speed="0.5 s (A100, batch 8)",
        source=SWITTI,
    ),
    PublishedNumbers(
        system="HART 0.7B, 1024",
        benchmark="MJHQ-30k",
        figures={"FID": "5.38", "GenEval": "0.55"},
        speed="0.75 s (A100)",
        source=HART,
    ),
    PublishedNumbers(
        system="HART 0.7B",
        benchmark="MJHQ-30k",
        figures={"FID": "5.8"},
        source=f"{SWITTI}, {OF_SWITTI}",
    ),
    PublishedNumbers(
        system="SDXL",
        benchmark="MJHQ-30k",
        figures={"FID": "7.6", "ImageReward": "0.78"},
        speed="2.3 s (A100, batch 8)",
        source=f"{SWITTI}, {OF_SWITTI}",
    ),
    PublishedNumbers(
        system="SD3 medium",
        benchmark="MJHQ-30k",
        figures={"FID": "13.1", "ImageReward": "0.91"},
        speed="3.9 s (A100, batch 8)",
        source=f"{SWITTI}, {OF_SWITTI}",
    ),
    PublishedNumbers(
        system="Infinity-2B, 1024",
        benchmark="",
        figures={"ImageReward": "0.96", "HPS v2.1": "32.2", "GenEval": "0.69"},
        speed="0.8 s (H100)",
        source=INFINITY,
    ),
    PublishedNumbers(system="VAR d16", benchmark="ImageNet 256, classes", figures={"FID": "3.55"}, source=VAR),
    PublishedNumbers(system="VAR d20", benchmark="ImageNet 256, classes", figures={"FID": "2.95"}, source=VAR),
    PublishedNumbers(system="VAR d24", benchmark="ImageNet 256, classes", figures={"FID": "2.33"}, source=VAR),
    PublishedNumbers(
        system="VAR d30",
        benchmark="ImageNet 256, classes",
        figures={"FID": "1.97", "FID with rejection": "1.80"},
        source=VAR,
    ),
    PublishedNumbers(system="VAR d36", benchmark="ImageNet 512, classes", figures={"FID": "2.63"}, source=VAR),
    PublishedNumbers(
        system="StyleGAN-T 1.0B, 64",
        benchmark=COCO,
        figures={"FID": "7.30"},
        speed="0.06 s (A100)",
        source=STYLEGAN_T,
    ),
    PublishedNumbers(
        system="StyleGAN-T 1.0B, 256", benchmark="COCO, zero-shot, 30k", figures={"FID": "13.90"}, source=STYLEGAN_T
    ),
    PublishedNumbers(system="StyleGAN-T 1.0B, 512", benchmark="", figures={}, speed="0.10 s (A100)", source=STYLEGAN_T),
    PublishedNumbers(
        system="StyleNAT, 48.9M",
        benchmark="FFHQ-256",
        figures={"FID": "2.046"},
        speed="32.6 pictures per second",
        source=STYLENAT,
    ),
    PublishedNumbers(system="StyleNAT, 49.5M", benchmark="FFHQ-1024", figures={"FID": "4.174"}, source=STYLENAT),
    PublishedNumbers(system="StyleNAT", benchmark="LSUN church 256", figures={"FID": "3.400"}, source=STYLENAT),
    PublishedNumbers(
        system="Styleformer", benchmark="CIFAR-10", figures={"FID": "2.82", "IS": "9.94"}, source=STYLEFORMER
    ),
    PublishedNumbers(
        system="Styleformer", benchmark="STL-10", figures={"FID": "15.17", "IS": "11.01"}, source=STYLEFORMER
    ),
    PublishedNumbers(system="Styleformer", benchmark="CelebA 64", figures={"FID": "3.66"}, source=STYLEFORMER),
    PublishedNumbers(system="Styleformer", benchmark="LSUN church 128", figures={"FID": "7.99"}, source=STYLEFORMER),
)
