"""StyleGAN-T (Sauer et al. 2023)."""

from star.generators.registration import Registration

FAMILY = Registration(
    generator="star.generators.stylegan_t.model:StyleGanTGenerator",
    presets="star.generators.stylegan_t.presets:PRESETS",
    converter="star.generators.stylegan_t.convert:convert_stylegan_t",
    converter_options=("text_encoder",),
    summary="a StyleGAN-T",
)
