"""StyleNAT (Walton et al. 2022)."""

from star.generators.registration import Registration

FAMILY = Registration(
    generator="star.generators.stylenat.model:StyleNatGenerator",
    presets="star.generators.stylenat.presets:PRESETS",
    converter="star.generators.stylenat.convert:convert_stylenat",
    summary="a StyleNAT",
)
