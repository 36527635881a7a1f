"""Networks built to be loaded: shapes without values, no random numbers, and all values afterwards."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from star.data.unfilled import fill, unfilled


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(3, 2), nn.Embedding(4, 3)
        self.start = nn.Parameter(torch.empty(2))
        nn.init.trunc_normal_(self.start)
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))


def test_nothing_is_made_or_drawn() -> None:
    before = torch.get_rng_state()
    with unfilled():
        network = Network()
    assert all(value.is_meta for value in network.state_dict().values())
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.empty(1).is_meta


def test_what_lies_on_a_real_device_is_computed() -> None:
    with unfilled(), torch.device("cpu"):
        table = torch.ones(3).mul_(2).add_(1)
    assert table.tolist() == [3, 3, 3]


def test_all_values_are_copies_in_the_type_asked_for() -> None:
    source = Network().requires_grad_(False)
    with unfilled():
        network = Network()
    fill(network, source.state_dict(), torch.bfloat16)
    assert network.start.dtype == torch.bfloat16
    assert network.get_buffer("steps").dtype == torch.int64
    assert network.start.requires_grad
    assert torch.equal(network.linear.weight, source.linear.weight.bfloat16())
    fill(network, source.state_dict())
    source.linear.weight.zero_()
    assert network.linear.weight.abs().min() > 0


def test_a_network_that_is_not_whole_is_noticed() -> None:
    with unfilled():
        network = Network()
        network.extra = nn.Buffer(torch.zeros(1), persistent=False)
    with pytest.raises(AssertionError, match="'extra'"):
        fill(network, Network().state_dict())


def test_torchs_compiler_stays_out_of_it() -> None:
    code = (
        "import sys, torch\nfrom torch import nn\nfrom star.data.unfilled import unfilled\n"
        "with unfilled():\n    nn.Embedding(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 3, 3)\n"
        "    nn.init.trunc_normal_(torch.empty(3)).div_(3)\n"
        "print(sorted({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
