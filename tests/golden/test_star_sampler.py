"""The refiner and stable sampling against the official STAR code, with the noise that it drew."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from star.convert.names import REFINER, rename
from star.data.text import TextFeatures
from star.generators.protocol import SampleOptions
from star.model.refiner import Refiner, RefinerConfig, ScalePlan, masked_loss
from star.model.transformer import NextScaleTransformer
from star.sampling.masked_decoding import MaskedDecoder, PartialScale, unmask_counts
from star.sampling.sampler import SampleRng, draw_pass, join
from star.tokenizer.quantizer import MultiScaleQuantizer
from tests.golden.cases import Case, cases, close
from tests.golden.test_star import batch_source, reading_from, text_rows, tokenizer, transformer_config


def refiner_config(case: Case) -> RefinerConfig:
    """Every scale from the json's first one on, with as many plain steps as it reveals twice."""
    plans = [
        ScalePlan(
            scale=int(k),
            steps=given["steps"],
            plain=len(given["topk_calls_k"]) - given["steps"],
            shuffled=given["n_rand"],
        )
        for k, given in case.json["ar"]["schedules"].items()
    ]
    assert min(plan.scale for plan in plans) == case.config["sample_from_idx"]
    return RefinerConfig(depth=case.config["encoder_depth"], plans=tuple(plans))


def networks(case: Case) -> tuple[NextScaleTransformer, Refiner]:
    config = transformer_config(case)
    tensors = rename(case.weights(), config)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(REFINER)}
    model, refiner = NextScaleTransformer(config), Refiner(refiner_config(case), config)
    model.load_state_dict(own, strict=True)
    rest = {name.removeprefix(REFINER): tensor for name, tensor in tensors.items() if name not in own}
    refiner.load_state_dict(rest, strict=True)
    return model.eval(), refiner.eval()


@dataclass(frozen=True, slots=True)
class StoredNoise(SampleRng):
    """The official draws: the likeliest code after adding stored noise to the log-probabilities."""

    case: Case

    def pick(self, kept_BlV: Tensor, k: int, step: int | None = None) -> Tensor:
        noise_lV = self.case[f"in/ar_gumbel_{k}"][step or 0].float()
        return (kept_BlV.softmax(dim=-1).log() + noise_lV).argmax(dim=-1)

    def order(self, k: int, step: int, length: int) -> Tensor:
        return self.case[f"in/ar_rand_{k}"][step].reshape(1, length)


@dataclass
class Recorded(MaskedDecoder):
    """Keeps what was revealed when."""

    refiner: Refiner
    quantizer: MultiScaleQuantizer
    canvases: dict[int, PartialScale] = field(default_factory=dict)

    def reveal(self, hidden_RlC: Tensor, logits_BlV: Tensor, k: int, *rest: Any) -> PartialScale:
        self.canvases[k] = super().reveal(hidden_RlC, logits_BlV, k, *rest)
        return self.canvases[k]


def teacher_forced(case: Case, refiner: Refiner, hidden_BLC: Tensor, text: TextFeatures) -> tuple[Tensor, ...]:
    """The refiner's logits for all its scales at once, the codes and what is known of them."""
    span = slice(refiner.schedule.offsets[case.config["sample_from_idx"]], None)
    codes_Bl, known_Bl = case["in/target_idx"][:, span], case["in/visible_mask"].bool()
    logits_BlV = refiner(
        refiner.text_token(text.pooled_BD),
        tokenizer(case).quantizer.vectors(codes_Bl, 0),
        known_Bl,
        hidden_BLC[:, span],
        span,
        refiner.mask(span),
    )
    return logits_BlV, codes_Bl, known_Bl


@pytest.mark.parametrize("path", cases("star", "star_sampler"))
class TestStableSampler:
    @pytest.mark.parametrize("behaviour", ["released", "fixed"])
    @torch.no_grad()
    def test_teacher_forcing(self, path: Path, behaviour: str) -> None:
        case = Case(path)
        model, refiner = networks(case)
        quantizer = tokenizer(case).quantizer
        teacher_input = quantizer.teacher_input(model.schedule.split(case["in/target_idx"]))
        text = text_rows(case, 0, 1)
        hidden_BLC, _ = reading_from(model, batch_source(behaviour, 2)).hidden(teacher_input, text)
        if f"out/{behaviour}/base_logits_b2" in case.tensors:
            close(model.logits(hidden_BLC), case[f"out/{behaviour}/base_logits_b2"], 1e-4)
        logits_BlV, codes_Bl, known_Bl = teacher_forced(case, refiner, hidden_BLC, text)
        close(logits_BlV, case[f"out/{behaviour}/sampler_logits_b2"], 1e-4)
        if f"out/{behaviour}/sampler_loss_b2" in case.tensors:
            loss = masked_loss(logits_BlV, codes_Bl, known_Bl, model.schedule.length)
            close(loss.reshape(1), case[f"out/{behaviour}/sampler_loss_b2"], 1e-5)

    def test_schedule(self, path: Path) -> None:
        for given in Case(path).json["ar"]["schedules"].values():
            assert list(unmask_counts(given["patch"] ** 2, given["steps"])) == given["reveal_counts"]

    def test_drawing(self, path: Path) -> None:
        case = Case(path)
        given = case.json["ar"]
        assert (given["sample_version"], given["w_mask"]) == ("1024", True)
        model, refiner = networks(case)
        own = tokenizer(case)
        stable = Recorded(refiner, own.quantizer)
        options = SampleOptions(guidance_scale=1 + given["cfg"], top_k=given["top_k"], top_p=given["top_p"])
        count = given["B"]
        codes, latent_BEhw = draw_pass(
            reading_from(model, batch_source(given["behaviour"], 2 * count)),
            own.quantizer,
            join(text_rows(case, *range(count)), text_rows(case, 2)),
            StoredNoise(range(count), options, case),
            stable=stable,
        )
        for k, codes_Bl in enumerate(codes):
            assert torch.equal(codes_Bl, case[f"out/ar_idx_{k}"]), f"codes of scale {k}"
        for k, canvas in stable.canvases.items():
            assert torch.equal(canvas.step_Bl, case[f"out/ar_reveal_step_{k}"]), f"steps of scale {k}"
        assert len(stable.canvases) == len(given["schedules"])
        close(latent_BEhw, case["out/ar_f_hat"], 1e-5)
        with torch.no_grad():
            close((own.latent_to_image(latent_BEhw) + 1) / 2, case["out/ar_image"], 1e-4)

    @torch.no_grad()
    def test_a_perturbed_weight_is_noticed(self, path: Path) -> None:
        case = Case(path)
        model, refiner = networks(case)
        teacher_input = tokenizer(case).quantizer.teacher_input(model.schedule.split(case["in/target_idx"]))
        text = text_rows(case, 0, 1)
        hidden_BLC, _ = reading_from(model, batch_source("released", 2)).hidden(teacher_input, text)
        refiner.merge.weight[0] *= 1.1
        with pytest.raises(AssertionError, match="largest gap"):
            close(teacher_forced(case, refiner, hidden_BLC, text)[0], case["out/released/sampler_logits_b2"], 1e-4)
