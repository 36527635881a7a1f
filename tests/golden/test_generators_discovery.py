"""Every golden case of the GANs has a test that reads it: one of a kind that nobody knows makes the run fail."""

import pytest

from tests.golden.generator_cases import FOLDER, discover

# How the names of the cases begin that each test file compares.
KINDS = {
    "test_stylegan_t.py": ("stylegan_t_g", "stylegan_t_disc_tinyvit", "stylegan_t_dischead", "stylegan_t_losses"),
    "test_stylenat.py": (
        "stylenat_g",
        "stylenat_d",
        "stylenat_losses",
        "stylenat_na_core",
        "stylenat_resample",
    ),
    "test_styleformer.py": ("styleformer_g", "styleformer_d", "styleformer_ada"),
}


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden files in {FOLDER}; set GOLDEN_DIR")
def test_no_case_is_of_an_unknown_kind() -> None:
    found = discover()
    assert found
    known = tuple(prefix for prefixes in KINDS.values() for prefix in prefixes)
    unknown = [path.stem for path in found if not path.stem.startswith(known)]
    assert not unknown, f"no test compares {', '.join(unknown)}: write one, or correct the name"
