"""The transformer and its sampler against the official STAR and VAR code, number by number."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star.convert.names import rename
from star.data.text import TextFeatures
from star.generators.protocol import SampleOptions
from star.model.block import Block
from star.model.heads import filter_logits
from star.model.rope import Rotation, rotate, scale_rotation
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.sampling.sampler import SampleRng, draw_codes, draw_pass, join
from star.tokenizer.convert import config_of
from star.tokenizer.convert import rename as rename_tokenizer
from star.tokenizer.tokenizer import MultiScaleTokenizer
from tests.golden.cases import Case, cases, close


def text_rows(case: Case, *rows: int) -> TextFeatures:
    """Some rows of the case's text."""
    index = torch.tensor(rows)
    return TextFeatures(
        tokens_BTD=case["in/text_states"][index],
        mask_BT=case["in/text_mask"][index].bool(),
        pooled_BD=case["in/text_pooled"][index],
    )


def transformer_config(case: Case, **changes: Any) -> TransformerConfig:
    """Our configuration of a case's network, all of it read from its json."""
    given = case.config
    is_class = "in_dim_cross" not in given
    if is_class:
        kind: dict[str, Any] = {
            "conditioning": "class",
            "cross_attention": False,
            "positions": "absolute",
            "modulation": "shared-adaln" if given["shared_aln"] else "adaln",
            "classes": given["num_classes"],
        }
    else:
        assert (given["rotary_pos_emb"], given["absolute_lvl_emb"], given["shared_aln"]) == (True, True, False)
        kind = {
            "text_width": given["in_dim_cross"],
            "cross_attention": given["enable_cross"],
            "rope_theta": given["rope_theta"],
            "rope_norm": given["rope_norm"],
            "logit_norm": given["enable_logit_norm"],
        }
    settings: dict[str, Any] = {
        "sizes": tuple(given["patch_nums"]),
        "depth": given["depth"],
        "width": given["embed_dim"],
        "heads": given["num_heads"],
        "mlp_ratio": given.get("mlp_ratio", 4.0),
        "norm_eps": given.get("norm_eps", 1e-6),
        "qk_norm": given["attn_l2_norm"],
        "vocabulary": given["vocab_size"],
        "code_width": given["Cvae"],
    }
    return TransformerConfig(**settings | kind | changes)


def transformer(case: Case, **changes: Any) -> NextScaleTransformer:
    """The case's network with its weights, in evaluation mode."""
    config = transformer_config(case, **changes)
    model = NextScaleTransformer(config)
    model.load_state_dict(rename(case.weights(), config), strict=True)
    return model.eval()


def tokenizer(case: Case) -> MultiScaleTokenizer:
    """The tokenizer that the case names, with the case's own scales."""
    weights = case.sibling(case.json["tokenizer_case"].split()[0]).weights()
    config = config_of({key: tensor.shape for key, tensor in weights.items()}, tuple(case.config["patch_nums"]))
    model = MultiScaleTokenizer(config)
    model.load_state_dict(rename_tokenizer(weights), strict=True)
    return model.eval()


def without_key_bias(model: NextScaleTransformer) -> NextScaleTransformer:
    for name, buffer in model.named_buffers():
        if name.endswith("key_bias"):
            buffer.zero_()
    return model


def options(case: Case) -> SampleOptions:
    given = case.json["ar"]
    return SampleOptions(guidance_scale=1 + given["cfg"], top_k=given["top_k"], top_p=given["top_p"])


def compare_drawing(case: Case, prefix: str, drawn: tuple[list[Tensor], Tensor], logits: list[Tensor]) -> None:
    codes, latent_BEhw = drawn
    for k, codes_Bl in enumerate(codes):
        assert torch.equal(codes_Bl, case[f"{prefix}idx_{k}"]), f"codes of scale {k}"
        close(logits[k], case[f"{prefix}guided_logits_{k}"], 3e-4)
    assert f"{prefix}idx_{len(codes)}" not in case.tensors
    close(latent_BEhw, case[f"{prefix}f_hat"], 1e-5)
    with torch.no_grad():
        image_B3HW = tokenizer(case).latent_to_image(latent_BEhw)
    close((image_B3HW + 1) / 2, case[f"{prefix}image"], 1e-4)


@pytest.mark.parametrize("path", cases("star", "rope"))
def test_rope(path: Path) -> None:
    case, seen = Case(path), 0
    for key, expected in case.tensors.items():
        name = key.removeprefix("out/")
        if name.startswith("theta"):
            theta, norm, width, size = (float(re.sub("[a-z]", "", part)) for part in name.split("_"))
            table = scale_rotation(int(size), int(width), theta=theta, norm=norm)
            close(torch.stack((table.cos_lP, table.sin_lP), dim=-1), expected, 2e-5)
        elif key.startswith("out/"):
            which, _, theta_part, width_part, size_part = name.split("_")
            theta_name = theta_part + "_"
            tables = [k for k in case.tensors if theta_name in k and k.endswith(f"{width_part}_{size_part}")]
            table_key = next(k for k in tables if k.startswith("out/theta"))
            table = Rotation(*case[table_key].unbind(-1))
            close(rotate(case[f"in/{which}_{width_part}_{size_part}"], table), expected, 1e-4)
        else:
            continue
        seen += 1
    assert seen


@pytest.mark.parametrize("path", cases("star", "topk_topp"))
def test_top_k_then_top_p(path: Path) -> None:
    case = Case(path)
    for top_k, top_p in case.config["combos"]:
        kept = filter_logits(case["in/logits"], top_k, top_p).softmax(dim=-1)
        close(kept, case[f"out/prob_k{top_k}_p{top_p}"], 1e-6)


@pytest.mark.parametrize("path", [*cases("star", "var_class"), *cases("star", "var_class_shared_aln")])
class TestVar:
    def test_teacher_forcing(self, path: Path) -> None:
        case = Case(path)
        model = transformer(case)
        logits_BLV = model(case["in/x_BLCv_wo_first_l"], case["in/label"])
        close(logits_BLV, case["out/logits"], 1e-4)
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), case["in/target_idx"].flatten())
        close(loss.reshape(1), case["out/ce_mean"], 1e-5)
        logits_BLV = without_key_bias(model)(case["in/x_BLCv_wo_first_l"], case["in/label"])
        close(logits_BLV, case["out/logits_zero_kbias"], 1e-4)

    def test_drawing(self, path: Path) -> None:
        case, logits = Case(path), []
        label = case["in/ar_label"]
        drawn = draw_codes(
            transformer(case),
            tokenizer(case).quantizer,
            label,
            torch.tensor([case.config["num_classes"]]),
            seeds=range(len(label)),
            options=options(case),
            batch=len(label),
            watch=lambda k, logits_BlV, codes_Bl: logits.append(logits_BlV),
        )
        compare_drawing(case, "out/ar_", drawn, logits)


def batch_source(behaviour: str, rows: int) -> Tensor | None:
    """Upstream's literal batching: every row receives what row 0 read."""
    return torch.zeros(rows, dtype=torch.long) if behaviour == "released" else None


def reading_from(model: NextScaleTransformer, source_B: Tensor | None) -> NextScaleTransformer:
    """The network, whose rows receive from now on the cross-attention output of these rows; None: their own."""
    for block in model.blocks if source_B is not None else ():
        assert isinstance(block, Block)
        assert block.cross_attention is not None
        block.cross_attention.register_forward_hook(lambda _module, _given, read_BlC: read_BlC[source_B])
    return model


@pytest.mark.parametrize("path", cases("star", "star"))
class TestStar:
    @pytest.mark.parametrize("behaviour", ["released", "fixed"])
    def test_teacher_forcing(self, path: Path, behaviour: str) -> None:
        case = Case(path)
        model, inputs = transformer(case), case["in/x_BLCv_wo_first_l"]
        close(model(inputs[:1], text_rows(case, 0)), case[f"out/{behaviour}/logits_b1"], 1e-4)
        reading_from(model, batch_source(behaviour, 2))
        logits_BLV = model(inputs, text_rows(case, 0, 1))
        close(logits_BLV, case[f"out/{behaviour}/logits_b2"], 1e-4)
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), case["in/target_idx"].flatten())
        close(loss.reshape(1), case[f"out/{behaviour}/ce_mean_b2"], 1e-5)
        swapped = model(inputs.flip(0), text_rows(case, 1, 0)).flip(0)
        close(swapped, case[f"out/{behaviour}/logits_b2_swapped_rows"], 1e-4)

    def test_variants(self, path: Path) -> None:
        case = Case(path)
        inputs, text = case["in/x_BLCv_wo_first_l"][:1], text_rows(case, 0)
        close(transformer(case, logit_norm=False)(inputs, text), case["out/released/logits_b1_no_logit_norm"], 1e-4)
        model = transformer(case, rope_theta=100.0, rope_norm=32.0)
        close(model(inputs, text), case["out/released/logits_b1_rope_theta100_norm32"], 1e-4)
        model = without_key_bias(transformer(case))
        close(model(inputs, text), case["out/released/logits_b1_zero_kbias"], 1e-4)

    def test_inside_the_blocks(self, path: Path) -> None:
        case = Case(path)
        seen: dict[str, Tensor] = {}
        model = transformer(case)
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            assert block.cross_attention is not None
            modules = {"self_attn": block.attention, "cross_attn": block.cross_attention, "ffn": block.mlp, "": block}
            for name, module in modules.items():
                key = f"debug/block{i}{'_' + name if name else ''}_out_b1"
                module.register_forward_hook(lambda _m, _i, output, key=key: seen.__setitem__(key, output))
        model(case["in/x_BLCv_wo_first_l"][:1], text_rows(case, 0))
        expected = [key for key in case.tensors if key.startswith("debug/")]
        assert expected
        for key in expected:
            close(seen[key], case[key], 1e-4)

    @pytest.mark.parametrize("behaviour", ["released", "fixed"])
    @pytest.mark.parametrize("prompts", [1, 2])
    def test_drawing(self, path: Path, behaviour: str, prompts: int) -> None:
        case, logits = Case(path), []
        drawn = draw_pass(
            reading_from(transformer(case), batch_source(behaviour, 2 * prompts)),
            tokenizer(case).quantizer,
            join(text_rows(case, *range(prompts)), text_rows(case, 2)),
            SampleRng(range(prompts), options(case)),
            watch=lambda k, logits_BlV, codes_Bl: logits.append(logits_BlV),
        )
        compare_drawing(case, f"out/{behaviour}/ar_b{prompts}_", drawn, logits)

    @pytest.mark.parametrize(("mode", "behaviour"), [("released", "released"), ("per-sample", "fixed")])
    def test_public_modes_give_each_prompt_its_own_picture(self, path: Path, mode: Any, behaviour: str) -> None:
        case = Case(path)
        codes, _ = draw_codes(
            transformer(case),
            tokenizer(case).quantizer,
            text_rows(case, 1, 0),
            text_rows(case, 2),
            seeds=(0, 1),
            options=options(case),
            cross_attention=mode,
        )
        for k, codes_Bl in enumerate(codes):
            assert torch.equal(codes_Bl[1:], case[f"out/{behaviour}/ar_b1_idx_{k}"]), f"codes of scale {k}"

    def test_a_perturbed_weight_is_noticed(self, path: Path) -> None:
        case = Case(path)
        model = transformer(case)
        with torch.no_grad():
            dict(model.named_parameters())["blocks.0.mlp.up.weight"][0] *= 1.1
        with pytest.raises(AssertionError, match="largest gap"):
            close(model(case["in/x_BLCv_wo_first_l"][:1], text_rows(case, 0)), case["out/fixed/logits_b1"], 1e-4)


@pytest.mark.parametrize("behaviour", ["released", "fixed"])
@pytest.mark.parametrize("path", cases("star", "star_grad"))
def test_gradients(path: Path, behaviour: str) -> None:
    case = Case(path)
    base = case.sibling(case.json["uses_case"])
    model = reading_from(transformer(base), batch_source(behaviour, 2))
    logits_BLV = model(base["in/x_BLCv_wo_first_l"], text_rows(base, 0, 1))
    loss = F.cross_entropy(logits_BLV.flatten(0, 1), base["in/target_idx"].flatten())
    close(loss.detach().reshape(1), case[f"out/{behaviour}/loss"], 1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    compared = 0
    for key, expected in case.tensors.items():
        if key.startswith(f"grad/{behaviour}/"):
            (ours,) = rename({key.removeprefix(f"grad/{behaviour}/"): expected}, model.config)
            close(gradients[ours], expected, 1e-3 * expected.abs().max().item())
            compared += 1
    assert compared
    for released_key, norm in case.json["grad_norms"][behaviour].items():
        for ours in rename({released_key: torch.empty(0)}, model.config):
            assert gradients[ours].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7)
