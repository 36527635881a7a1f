"""Styles of GANs: truncated, mixed, and moved along directions that were found without labels."""

import pytest
import torch

from star.data.errors import InputError
from star.generators.gan.editing import METHODS, SAMPLES, Directions, Method, _amplification, _sampled, directions, mix
from star.generators.gan.generator import GanGenerator
from star.generators.protocol import SampleOptions
from star.generators.registry import build
from star.pipeline import Pipeline

PROMPT = "a red circle"


@pytest.fixture(scope="module", params=("stylegan-t", "stylenat", "styleformer"))
def gan(request: pytest.FixtureRequest) -> GanGenerator:
    generator = build(f"{request.param}-test")
    assert isinstance(generator, GanGenerator)
    return generator


def test_generate_is_the_pictures_of_the_styles(gan: GanGenerator) -> None:
    options = SampleOptions(truncation=0.6)
    drawn = gan.generate([PROMPT, "a dog"], seeds=[3, 4], options=options)
    for i, (prompt, seed) in enumerate(((PROMPT, 3), ("a dog", 4))):
        assert torch.equal(gan.pictures(gan.styles([prompt], [seed], options))[0], drawn[i])


def test_truncation_0_gives_the_mean_and_shortens_evenly(gan: GanGenerator) -> None:
    styles = {t: gan.styles([PROMPT] * 2, [3, 4], SampleOptions(truncation=t)) for t in (0.0, 0.5, 1.0)}
    assert torch.allclose(styles[0.0][0], styles[0.0][1], atol=1e-6)  # of every seed the same
    assert torch.allclose(styles[0.5], (styles[0.0] + styles[1.0]) / 2, atol=1e-5)
    if gan.family != "stylegan-t":  # whose mean is followed in training
        latents_NZ = torch.randn(256, gan.network.latent_width, generator=torch.Generator().manual_seed(0))
        condition_1P = gan.condition([PROMPT])
        assert condition_1P is not None
        mean_SW = gan.styles_of(latents_NZ, condition_1P.expand(256, -1)).mean(dim=0)
        assert torch.allclose(styles[0.0][0], mean_SW, atol=1e-4)
    pictures = gan.generate([PROMPT] * 2, seeds=[3, 4], options=SampleOptions(truncation=0.0))
    assert (pictures[0].int() - pictures[1].int()).abs().max() <= 1


def test_mixed_styles_are_the_ones_before_the_slot_and_the_others_behind(gan: GanGenerator) -> None:
    options, slots = SampleOptions(), gan.network.slots
    coarse_1SW, fine_1SW = (gan.styles([PROMPT], [seed], options) for seed in (3, 4))
    for slot in (0, 1, slots // 2, slots):
        mixed_1SW = mix(coarse_1SW, fine_1SW, slot)
        assert torch.equal(mixed_1SW[:, :slot], coarse_1SW[:, :slot])
        assert torch.equal(mixed_1SW[:, slot:], fine_1SW[:, slot:])
    assert torch.equal(gan.pictures(mix(coarse_1SW, fine_1SW, slots))[0], gan.generate([PROMPT], seeds=[3])[0])
    for slot in (-1, slots + 1):
        with pytest.raises(InputError, match=f"expected 0 to {slots}"):
            mix(coarse_1SW, fine_1SW, slot)
    pipe = Pipeline(gan)
    assert pipe.mix(PROMPT, coarse_seed=3, fine_seed=4, slot=0).tobytes() == pipe(PROMPT, seed=4).images[0].tobytes()
    assert pipe.mix([PROMPT, "a dog"], coarse_seed=3, fine_seed=4, slot=0) == pipe("a dog", seed=4).images[0]


@pytest.mark.parametrize("method", METHODS)
def test_directions_are_orthonormal_and_the_first_matters_most(gan: GanGenerator, method: Method) -> None:
    found = directions(gan, PROMPT, method=method, count=8)
    assert torch.allclose(found.rows_DW @ found.rows_DW.T, torch.eye(8), atol=1e-5)
    assert (found.shares_D.diff() <= 1e-7).all()
    assert 0 < float(found.shares_D.sum()) <= 1 + 1e-5
    again = directions(gan, PROMPT, method=method, count=8)
    assert torch.equal(found.rows_DW, again.rows_DW)
    w_NW = _sampled(gan, PROMPT)
    assert torch.allclose((w_NW @ found.rows_DW.T).std(dim=0), found.deviations_D, rtol=1e-3, atol=1e-6)
    other_W = torch.nn.functional.normalize(
        torch.randn(w_NW.shape[1], generator=torch.Generator().manual_seed(1)), dim=0
    )
    if method == "pca":
        assert float((w_NW @ other_W).std()) < float(found.deviations_D[0])
        assert float(found.deviations_D[0]) ** 2 * (SAMPLES - 1) == pytest.approx(
            float(found.shares_D[0] * (w_NW - w_NW.mean(dim=0)).square().sum()), rel=1e-3
        )


def test_sefa_finds_what_the_layers_amplify(gan: GanGenerator) -> None:
    found = directions(gan, PROMPT, method="sefa", count=4)
    varies_W = _sampled(gan, PROMPT).std(dim=0) > 1e-6
    matrix_WW = _amplification(gan.network) * varies_W * varies_W[:, None]
    rows_DW = found.rows_DW.double()
    gains_D = (rows_DW @ matrix_WW * rows_DW).sum(dim=1)
    assert torch.allclose(rows_DW @ matrix_WW, gains_D[:, None] * rows_DW, atol=1e-3 * float(gains_D[0]))
    for i in range(20):
        other_W = torch.randn(len(varies_W), generator=torch.Generator().manual_seed(i), dtype=torch.float64) * varies_W
        other_W = other_W / other_W.norm()
        assert float(other_W @ matrix_WW @ other_W) < float(gains_D[0])
    assert (found.deviations_D > 0).all()  # each moves something
    if gan.family == "stylegan-t":  # what the prompt says stays
        assert not found.rows_DW[:, gan.network.latent_width :].any()


def test_a_strength_of_0_is_the_picture_itself_to_the_bit(gan: GanGenerator) -> None:
    pipe, strengths = Pipeline(gan), [-3.0, 0.0, 3.0]
    found = pipe.directions(PROMPT, count=3)
    for number in range(3):
        moved = pipe.move(PROMPT, found, number, strengths, seed=5)
        assert moved[1].tobytes() == pipe(PROMPT, seed=5).images[0].tobytes()
        assert moved[0].tobytes() != moved[2].tobytes()


def test_a_strength_is_in_deviations_and_may_be_for_some_slots(gan: GanGenerator) -> None:
    found = directions(gan, PROMPT, count=3)
    w_1SW = gan.styles([PROMPT], [5], SampleOptions())
    step_SW = found.move(w_1SW, 1, 2.0)[0] - w_1SW[0]
    assert torch.allclose(step_SW @ found.rows_DW[1], 2 * found.deviations_D[1].expand(len(step_SW)), rtol=1e-3)
    assert torch.allclose(step_SW @ found.rows_DW[0], torch.zeros(len(step_SW)), atol=1e-4)
    part = found.move(w_1SW, 1, 2.0, slice(0, 2))
    assert torch.equal(part[:, 2:], w_1SW[:, 2:])
    assert torch.equal(part[:, :2], found.move(w_1SW, 1, 2.0)[:, :2])
    with pytest.raises(InputError, match="direction 3 was asked for, expected 0 to 2"):
        found.move(w_1SW, 3, 1.0)


def test_what_there_is_not_is_refused(gan: GanGenerator) -> None:
    with pytest.raises(InputError, match="expected pca or sefa"):
        directions(gan, PROMPT, method="ica")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="10000 directions were asked for"):
        directions(gan, PROMPT, count=10000)
    star = Pipeline(build("star-test"))
    empty = Directions("pca", torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))
    for ask in (
        lambda: star.directions(PROMPT),
        lambda: star.mix(PROMPT, coarse_seed=1, fine_seed=2, slot=1),
        lambda: star.move(PROMPT, empty, 0, [1.0]),
    ):
        with pytest.raises(InputError, match="no style-based GAN"):
            ask()
