"""Every golden case has a test that reads it: one of a kind that nobody knows makes the run fail."""

import json

import pytest
import torch

from star.released import rename, unused_keys
from star.transformer import NextScaleTransformer, TransformerConfig
from tests.golden.cases import GOLDEN_DIR, discover, kind

# Kinds that test_star.py and test_star_sampler.py compare; test_tokenizer.py takes whatever begins with "tokenizer".
STAR_KINDS = {"rope", "topk_topp", "var_class", "var_class_shared_aln", "star", "star_grad", "star_sampler"}

folder = GOLDEN_DIR / "star"
missing = pytest.mark.skipif(not folder.is_dir(), reason=f"no golden files in {folder}; set GOLDEN_DIR")


@missing
def test_no_case_is_of_an_unknown_kind() -> None:
    found = {path.stem: kind(path.stem) for path in discover("star")}
    assert found
    unknown = {name for name, of in found.items() if of not in STAR_KINDS and not of.startswith("tokenizer")}
    assert not unknown, f"no test compares {', '.join(sorted(unknown))}: write one, or correct the name"


def transformers() -> list[str]:
    """Names of the released transformers in checkpoint_keys.json."""
    path = folder / "checkpoint_keys.json"
    if not path.is_file():
        return []
    return [name for name in json.loads(path.read_text()) if not name.startswith("vae") and "sampler" not in name]


@missing
@pytest.mark.parametrize("name", transformers())
def test_released_checkpoints_fit_key_by_key(name: str) -> None:
    """Every key and shape of a released file is taken by a network on the meta device, and none is left over."""
    known = json.loads((folder / "checkpoint_keys.json").read_text())[name]
    depth, width = known["depth"], known["width"]
    released = {
        key.replace("{i}", str(i)): torch.empty(shape, device="meta")
        for key, shape in known["keys"].items()
        for i in (range(depth) if "{i}" in key else [0])
    }
    common = {"sizes": tuple(known["patch_nums"]), "depth": depth, "width": width, "heads": depth}
    if name.startswith("var"):
        modulation = "shared-adaln" if "shared_ada_lin.1.weight" in released else "adaln"
        own = {"conditioning": "class", "modulation": modulation, "positions": "absolute", "cross_attention": False}
    else:
        own = {}
    config = TransformerConfig(**common | own)
    with torch.device("meta"):
        model = NextScaleTransformer(config)
    renamed = rename(released, config)
    assert {key: tuple(t.shape) for key, t in model.state_dict().items()} == {
        key: tuple(t.shape) for key, t in renamed.items()
    }
    aside = unused_keys(released, config)
    assert set(aside) <= {"class_emb.weight", "lvl_1L", "attn_bias_for_masking"}
    unread = sum(released[key].numel() for key in aside if key == "class_emb.weight")
    assert sum(parameter.numel() for parameter in model.parameters()) + unread == known["num_parameters"]


def test_a_key_of_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.mat_q\.bias' is not a tensor of a released"):
        rename({"blocks.0.attn.mat_q.bias": torch.empty(0)}, TransformerConfig())
