"""The faster forms of a training on a CPU: the same numbers as the exact ones but for rounding, and their derivatives;
what both networks learn from, and the paired term."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad

import star.generators.gan.trainer
from star.data.errors import InputError
from star.data.synthetic import write
from star.generators.gan.backbones import round_towers
from star.generators.gan.clip_guidance import ClipGuidance
from star.generators.gan.config import GanTrainConfig, Lazy
from star.generators.gan.discriminators.projected import FrozenFeatures
from star.generators.gan.forms import fast, faster_forms
from star.generators.gan.layers import cut, downsample, fir_filter, fir_kernel, upsample
from star.generators.gan.losses import path_lengths, r1_penalty
from star.generators.gan.pairs import paired_loss
from star.generators.gan.train import train
from star.generators.gan.trainer import AdversarialTrainer, TrainingBatch
from star.generators.registration import load
from star.generators.registry import GANS, registration
from star.generators.training.run import RunConfig

PRESETS = {name: load(registration(name).presets)["test"] for name in GANS}
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}


def both(compute: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What a function gives in exact and in faster forms, from the same random numbers."""
    found = []
    for on in (False, True):
        torch.manual_seed(1)
        with faster_forms(on):
            found.append(compute())
    return found[0], found[1]


def agree(exact: Sequence[Tensor], quick: Sequence[Tensor]) -> None:
    """Each pair is equal but for rounding, in units of its largest number; a bias before a norm has a slope of 0."""
    assert len(exact) == len(quick)
    for one, other in zip(exact, quick, strict=True):
        size = float(one.detach().abs().max().clamp_min(1e-9))
        torch.testing.assert_close(other / size, one / size, **CLOSE)


def derivatives(output: Tensor, sources: list[Tensor]) -> list[Tensor]:
    """First derivatives of a fixed product, and those of their squares' sum, which R1 and path length go through."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    first = list(grad((output * weights).sum(), sources, create_graph=True, allow_unused=True))
    known = [part for part in first if part is not None]
    second = grad(torch.stack([part.square().sum() for part in known]).sum(), sources, allow_unused=True)
    return known + [part for part in second if part is not None]


@pytest.mark.parametrize(
    ("up", "down", "pad"), [(1, 1, (1, 1)), (2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (2, 2)), (3, 2, (0, 4))]
)
def test_a_filter_is_a_product_of_matrices(up: int, down: int, pad: tuple[int, int]) -> None:
    taps = fir_kernel((1.0, 2.0, 5.0, 3.0)) if up == 1 else fir_kernel()  # turned round it would be another one
    image = torch.randn(2, 3, 8, 6, dtype=torch.float64, requires_grad=True)

    def filtered() -> list[Tensor]:
        output = fir_filter(image, taps, up=up, down=down, pad=pad, gain=4.0)
        return [output, *derivatives(output.square(), [image])]

    exact, quick = both(filtered)
    agree(exact, quick)
    assert not torch.equal(exact[0], quick[0])  # they are computed differently


def test_resizing_keeps_its_size_and_type() -> None:
    image = torch.randn(2, 3, 8, 8).bfloat16()
    with faster_forms():
        assert upsample(image, fir_kernel()).shape == (2, 3, 16, 16)
        assert downsample(image, fir_kernel()).shape == (2, 3, 4, 4)
        assert upsample(image, fir_kernel()).dtype is torch.bfloat16


def test_a_block_ends_with_the_forms_before_it() -> None:
    assert not fast()
    with faster_forms():
        assert fast()
        with pytest.raises(KeyError), faster_forms(False):
            raise KeyError(fast())
        assert fast()
    assert not fast()


def test_what_is_too_large_is_cut_in_both_forms() -> None:
    values = torch.tensor([-300.0, -1.0, 0.5, 260.0], requires_grad=True)
    for on in (False, True):
        with faster_forms(on):
            output = cut(values, 256.0)
        assert output.tolist() == [-256.0, -1.0, 0.5, 256.0]
        (slope,) = grad(output.sum(), values)
        assert slope.tolist() == [0.0, 1.0, 1.0, 0.0]
    with faster_forms():
        inside = values[1:3] * 1
        assert cut(inside, 256.0) is inside


@pytest.mark.parametrize("family", GANS)
@pytest.mark.parametrize("noise", ["random", "const", "none"])
def test_a_generator_draws_and_learns_the_same(family: str, noise: Any) -> None:
    """Pictures, the slopes of all weights, and path lengths with theirs."""
    torch.manual_seed(0)
    network = PRESETS[family].family.network_class(PRESETS[family].network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("noise_strength", "bias", "layer_scale_1C11")):
                parameter.normal_()
    latent = torch.randn(4, network.latent_width)
    condition = nn.functional.normalize(torch.randn(4, network.condition_width), dim=1)
    parameters = list(network.parameters())

    def learnt() -> list[Tensor]:
        raw, w = network(latent, condition, noise)
        target = torch.randn(raw.shape, generator=torch.Generator().manual_seed(3))
        slopes = grad((raw * target).mean(), parameters, retain_graph=True, allow_unused=True)
        lengths = path_lengths(raw, w, target / 16)
        again = grad(lengths.mean(), parameters, allow_unused=True)
        return [raw, lengths, *(part for part in (*slopes, *again) if part is not None)]

    exact, quick = both(learnt)
    for one, other in zip(exact, quick, strict=True):
        size = float(one.detach().abs().max().clamp_min(1e-6))
        torch.testing.assert_close(other / size, one / size, rtol=2e-3, atol=2e-3)
    agree(exact[:2], quick[:2])


@pytest.mark.parametrize("family", GANS)
def test_a_discriminator_judges_and_learns_the_same(family: str) -> None:
    """Logits, the slopes of all weights and of the picture, and the R1 penalty with its slopes."""
    torch.manual_seed(0)
    discriminator = PRESETS[family].discriminator.build().double()
    side = PRESETS[family].network.resolution
    image = torch.randn(4, 3, side, side, dtype=torch.float64, requires_grad=True)
    condition = nn.functional.normalize(torch.randn(4, 256, dtype=torch.float64), dim=1)
    parameters = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
    state = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}

    def learnt() -> list[Tensor]:
        discriminator.load_state_dict(state)  # spectral norms move a vector in each pass
        logits = discriminator(image, condition)
        slopes = grad(logits.sum(), [image, *parameters], retain_graph=True, allow_unused=True)
        if family == "stylegan-t":  # its backbone's attention has no second derivative
            return [logits, *(part for part in slopes if part is not None)]
        penalty = r1_penalty(logits, image)
        again = grad(penalty.mean(), parameters, allow_unused=True)
        return [logits, penalty, *(part for part in (*slopes, *again) if part is not None)]

    agree(*both(learnt))


@pytest.mark.parametrize("kind", ["features", "guidance"])
def test_a_tower_in_bfloat16_sees_nearly_the_same(kind: str) -> None:
    """Half a per cent of eight bits each, and a slope for the picture in float32."""
    torch.manual_seed(0)
    module: Any = FrozenFeatures.from_pretrained("guide-emoji") if kind == "features" else ClipGuidance("guide-emoji")
    image = (torch.rand(4, 3, 64, 64) * 2 - 1).requires_grad_()
    condition = nn.functional.normalize(torch.randn(4, 256), dim=1)

    def seen() -> tuple[Tensor, Tensor]:
        found = module(image, (1, 3), True)[1].float() if kind == "features" else module(image, condition)[None]
        (slope,) = grad(found.square().mean(), image)
        return found.detach(), slope

    exact = seen()
    round_towers(module)
    with torch.autocast("cpu", torch.bfloat16):
        quick = seen()
    assert next(module.tower.parameters()).dtype is torch.bfloat16
    assert quick[1].dtype is torch.float32
    for one, other, most in zip(exact, quick, (0.02, 0.1), strict=True):
        assert not torch.equal(one, other)
        assert float((one - other).norm() / one.norm()) < most


# ---- in the training


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("shards")
    write(root, count=24, size=16, test=0)
    return [str(root / "train")]


def config(family: str, steps: int = 2, **changes: Any) -> GanTrainConfig:
    run = RunConfig(steps=steps, batch_size=4, log_every=1, sample_every=0, trackers=(), grad_clip=0.0)
    changed: GanTrainConfig = replace(PRESETS[family], **{"run": run, "sample_prompts": (), **changes})
    return changed


@pytest.mark.parametrize("family", GANS)
def test_a_training_may_take_faster_forms(
    family: str, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first losses are those of the exact forms; bfloat16 and everything else that is fast gives finite ones."""
    seen: list[dict[str, float]] = []

    class Noted(star.generators.gan.trainer.Run):
        def log(self, values: Any, images: int = 0) -> None:
            seen.append({name: float(torch.as_tensor(value).detach()) for name, value in values.items()})
            super().log(values, images)

    monkeypatch.setattr("star.generators.gan.train.Run", Noted)
    first = []
    for forms in ("exact", "fast"):
        seen.clear()
        train(config(family, steps=1, forms=forms), data=shards, out=tmp_path / forms)
        first.append({name: value for line in seen for name, value in line.items() if "loss" in name})
    assert first[0] == pytest.approx(first[1], rel=2e-3, abs=2e-4)
    run = RunConfig(steps=2, batch_size=4, log_every=1, sample_every=0, trackers=(), grad_clip=0.0, precision="bf16")
    quick = config(family, run=run, forms="fast", towers="bfloat16", one_draw=True, paired=1.0)
    assert (train(quick, data=shards, out=tmp_path / "all") / "model.safetensors").is_file()


def test_both_networks_can_learn_from_one_drawing(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    purposes: list[str] = []
    real = AdversarialTrainer.generate

    def noted(self: AdversarialTrainer, batch: TrainingBatch, rng: Any, purpose: str) -> Any:
        purposes.append(purpose)
        return real(self, batch, rng, purpose)

    monkeypatch.setattr(AdversarialTrainer, "generate", noted)
    off = Lazy()
    for one_draw, expected in ((False, ["judge 0", "learn 0"]), (True, ["judge 0"])):
        purposes.clear()
        out = tmp_path / str(one_draw)
        train(config("styleformer", steps=1, one_draw=one_draw, path_length=off), data=shards, out=out)
        assert purposes == expected


def test_the_paired_term_is_a_distance_at_all_sizes() -> None:
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    assert float(paired_loss(image, image)) == 0
    assert float(paired_loss(image + 0.5, image)) == pytest.approx(0.5)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1  # thumbnails of it are grey
    assert float(paired_loss(board.expand(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))) == pytest.approx(1 / 3)
    assert paired_loss(image.bfloat16(), image).dtype is torch.float32


def test_at_first_only_the_paired_term_counts(shards: list[str], tmp_path: Path) -> None:
    """For two steps of three the discriminator stays as it began, and the generator comes nearer to the pictures."""

    def parts(out: Path) -> tuple[dict[str, Any], list[str]]:
        state = torch.load(next((out / "checkpoints").glob("step-*")) / "state.pt")["tracked"]
        return state["discriminator"], (out / "metrics.jsonl").read_text().splitlines()

    found = {}
    for steps in (1, 2, 3):
        out = tmp_path / str(steps)
        train(config("stylenat", steps=steps, paired=10.0, paired_alone=2), data=shards, out=out)
        found[steps] = parts(out)
    first, second, third = (found[steps][0] for steps in (1, 2, 3))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, third[name]) for name, tensor in first.items())
    lines = found[3][1]
    assert "loss_generator" not in lines[1]
    assert "loss_generator" in lines[2]
    assert all("loss_paired" in line and f'"images": {4 * step}' in line for step, line in enumerate(lines, 1))


def test_the_paired_term_alone_needs_a_weight() -> None:
    with pytest.raises(InputError, match="paired is needed alone"):
        config("stylenat", paired_alone=2)
    with pytest.raises(InputError, match="must not be negative"):
        config("stylenat", paired=-1.0)
