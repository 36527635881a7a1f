"""Styleformer (Park and Kim 2022)."""

from star.generators.registration import Registration

FAMILY = Registration(
    generator="star.generators.styleformer.model:StyleformerGenerator",
    presets="star.generators.styleformer.presets:PRESETS",
    converter="star.generators.styleformer.convert:convert_styleformer",
    summary="a Styleformer",
)
