"""Every golden case has a test that reads it: one of a kind that nobody knows makes the run fail."""

import pytest
import torch

from star.convert.names import rename
from star.model.transformer import TransformerConfig
from tests.golden.cases import discover, kind

# Kinds that test_star.py and test_star_sampler.py compare; test_tokenizer.py takes whatever begins with "tokenizer".
STAR_KINDS = {"rope", "topk_topp", "var_class", "var_class_shared_aln", "star", "star_grad", "star_sampler"}


def test_no_case_is_of_an_unknown_kind() -> None:
    found = {path.stem: kind(path.stem) for path in discover("star")}
    assert found
    unknown = {name for name, of in found.items() if of not in STAR_KINDS and not of.startswith("tokenizer")}
    assert not unknown, f"no test compares {', '.join(sorted(unknown))}: write one, or correct the name"


def test_a_key_of_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.mat_q\.bias' is not a tensor of a released"):
        rename({"blocks.0.attn.mat_q.bias": torch.empty(0)}, TransformerConfig())
