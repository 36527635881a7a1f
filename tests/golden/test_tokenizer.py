"""The tokenizer against the official VAR code, number by number."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from star.tokenizer.convert import config_of, our_key, released_usage, rename
from star.tokenizer.losses import quantisation_loss, straight_through
from star.tokenizer.tokenizer import MultiScaleTokenizer
from tests.golden.cases import Case, cases, close, discover, kind

TOKENIZER_KINDS = sorted({kind(path.stem) for path in discover("star") if path.stem.startswith("tokenizer")})
CASES = [case for name in TOKENIZER_KINDS or ["tokenizer"] for case in cases("star", name)]


def tokenizer_of(case: Case) -> MultiScaleTokenizer:
    given, weights = case.config, case.weights()
    config = config_of({key: tensor.shape for key, tensor in weights.items()}, tuple(given["patch_nums"]))
    read_off = (config.quantizer.vocabulary, config.autoencoder.channels, config.autoencoder.multipliers)
    assert read_off == (given["vocab_size"], given["ch"], tuple(given["ch_mult"]))
    assert config.quantizer.phi_count == given["share_quant_resi"]
    # What no shape tells, and no release has otherwise.
    quantizer = replace(config.quantizer, phi_ratio=given["quant_resi"], cosine=given["using_znorm"])
    tokenizer = MultiScaleTokenizer(replace(config, quantizer=quantizer))
    tokenizer.load_state_dict(rename(weights), strict=True)
    return tokenizer


@pytest.mark.parametrize("path", CASES)
def test_codes_pyramid_and_pictures_are_the_official_ones(path: Path) -> None:
    case = Case(path)
    tokenizer = tokenizer_of(case)
    with torch.no_grad():
        latent = tokenizer.image_to_latent(case["in/image"])
        close(latent, case["out/f"], 5e-5)
        pyramid = tokenizer.quantizer.encode(latent)
        for k in range(tokenizer.schedule.count):
            assert torch.equal(pyramid.codes[k], case[f"out/idx_{k}"])
            close(pyramid.latents[k], case[f"out/f_hat_{k}"], 1e-5)
            if f"out/rec_{k}" in case.tensors:
                close(tokenizer.latent_to_image(pyramid.latents[k]), case[f"out/rec_{k}"], 1e-4)
        close(tokenizer.decode(pyramid.codes), case["out/rec_last"], 1e-4)
        close(tokenizer.quantizer.teacher_input(pyramid.codes), case["out/var_input"], 1e-5)


@pytest.mark.parametrize("path", CASES)
def test_training_loss_and_gradients_are_the_official_ones(path: Path) -> None:
    case = Case(path)
    if "out/train_vq_loss" not in case.tensors:
        pytest.skip(f"{case.name} records no training step")
    tokenizer = tokenizer_of(case)
    latent = tokenizer.image_to_latent(case["in/image"])
    pyramid = tokenizer.quantizer.encode(latent.detach())
    loss = quantisation_loss(latent, pyramid.latents, beta=case.config["beta"], commit_to="all", relative=False)
    decoded = tokenizer.latent_to_image(straight_through(latent, pyramid.latents[-1]), clamp=False)
    close(decoded, case["out/train_rec"], 1e-4)
    close(loss.reshape(1), case["out/train_vq_loss"], 1e-5)
    (loss + decoded.square().mean()).backward()
    gradients = {name: parameter.grad for name, parameter in tokenizer.named_parameters()}
    recorded = [key for key in case.tensors if key.startswith("grad/")]
    assert recorded
    for key in recorded:
        expected = case[key]
        gradient = gradients[our_key(key.removeprefix("grad/")) or ""]
        assert gradient is not None
        close(gradient, expected, 1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("path", CASES)
def test_reported_usage_is_the_official_one(path: Path) -> None:
    case = Case(path)
    if case.json.get("usages_percent") is None:
        pytest.skip(f"{case.name} records no usage")
    hits = case.weights()["quantize.ema_vocab_hit_SV"]
    batch, grid = case["in/image"].shape[0], case.config["patch_nums"][-1]
    assert released_usage(hits, batch, grid) == pytest.approx(case.json["usages_percent"])


def test_a_perturbed_weight_is_noticed() -> None:
    case = Case(next(path for path in discover("star") if kind(path.stem) == "tokenizer"))
    tokenizer = tokenizer_of(case)
    with torch.no_grad():
        weight = tokenizer.quantizer.phis[0].weight
        assert isinstance(weight, torch.Tensor)
        weight[0, 0, 1, 1] += 1e-3
        decoded = tokenizer.decode([case[f"out/idx_{k}"] for k in range(tokenizer.schedule.count)])
    with pytest.raises(AssertionError, match="largest gap"):
        close(decoded, case["out/rec_last"], 1e-4)
