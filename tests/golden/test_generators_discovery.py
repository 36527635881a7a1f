"""Every golden case of the GANs has a test that reads it: one of a kind that nobody knows makes the run fail."""

from tests.golden.generator_cases import discover, kind

# How the kinds of the cases begin that each test file compares.
KINDS = {
    "test_stylegan_t.py": (
        "StyleGAN-T generator",
        "StyleGAN-T ProjectedDiscriminator",
        "StyleGAN-T DiscHead",
        "StyleGAN-T losses",
    ),
    "test_stylenat.py": (
        "StyleNAT generator",
        "StyleNAT discriminator",
        "StyleNAT losses",
        "StyleNAT head-partitioned neighbourhood attention",
        "StyleNAT resamplers",
    ),
    "test_styleformer.py": (
        "Styleformer generator",
        "Styleformer discriminator",
        "Styleformer / StyleGAN2-ADA AugmentPipe",
    ),
}


def test_no_case_is_of_an_unknown_kind() -> None:
    found = discover()
    assert found
    known = tuple(prefix for prefixes in KINDS.values() for prefix in prefixes)
    unknown = [path.stem for path in found if not kind(path).startswith(known)]
    assert not unknown, f"no test compares {', '.join(unknown)}: write one, or correct the case"
