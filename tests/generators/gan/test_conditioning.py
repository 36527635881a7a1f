"""Conditioner of captions: what is kept of them is bounded, and a caption's vector does not depend on what was kept."""

import pytest
import torch

import star.generators.gan.conditioning
from star.generators.gan.conditioning import Conditioner
from star.generators.stylegan_t.presets import PRESETS as STYLEGAN_T


def test_vectors_are_the_same_however_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    config = STYLEGAN_T["test"]
    network = config.family.network_class(config.network)
    prompts = [f"a picture of {number} stars" for number in range(8)]
    plain = Conditioner(network, config.clip, (), torch.device("cpu"))
    expected_BP = plain.of(prompts, [])
    assert expected_BP is not None
    assert len(plain._known) == 8
    monkeypatch.setattr(star.generators.gan.conditioning, "KEPT", 3 * 4 * config.network.condition_width)
    few = Conditioner(network, config.clip, (), torch.device("cpu"))
    for rows in ([0, 1, 2], [7, 0, 7, 3], [*range(8)], [4]):
        found_BP = few.of([prompts[row] for row in rows], [])
        assert found_BP is not None
        assert torch.equal(found_BP, expected_BP[rows])
        assert len(few._known) <= 3
        assert few._known.bytes <= 3 * 4 * config.network.condition_width
