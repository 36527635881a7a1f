"""Released models by name: what the hub gives is checked and converted; without it the error says what to do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

from star.cli import main
from star.convert.hub import choose
from star.convert.published import RELEASED, STAR_HUB, VAR_HUB
from star.data.errors import InputError
from star.generators import registry
from star.generators.pretrained import sha256
from tests.star import layouts

NAMES = ["README.md", "star_d16_256.pth", "STAR_d30_256.pth", "d30/star_d30_512.pth", "var_rope_d30_1024_ar.pth"]
NAMES += ["var_rope_d30_1024_sampler_mask_0108-ar-ckpt-ep2-iter6000.pth"]


class Hub:
    """Repositories made of local files."""

    def __init__(self, repositories: dict[str, list[Path]]) -> None:
        self.repositories, self.lie = repositories, ""

    def model_info(self, hub: str, **_: Any) -> Any:
        siblings = [
            SimpleNamespace(rfilename=path.name, lfs=SimpleNamespace(sha256=self.lie or sha256(path)))
            for path in self.repositories[hub]
        ]
        return SimpleNamespace(siblings=siblings)

    def download(self, hub: str, name: str) -> str:
        return next(str(path) for path in self.repositories[hub] if path.name == name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    levels = torch.repeat_interleave(torch.arange(10), torch.tensor([size**2 for size in layouts.SCALES[256]]))
    tensors, tokenizer = layouts.values(layouts.var()), layouts.values(layouts.tokenizer())
    files = [
        layouts.save(tensors | {"lvl_1L": levels[None]}, tmp_path / "var_d16.pth"),
        layouts.save(tokenizer, tmp_path / "vae_ch160v4096z32.pth"),
    ]
    star = layouts.training_state(layouts.values(layouts.star()), tokenizer)
    hub = Hub({VAR_HUB: files, STAR_HUB: [layouts.save(star, tmp_path / "star_d30_512.pth")]})
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "home"))
    return hub


def test_a_name_is_fetched_once_and_drawn_from(hub: Hub, tmp_path: Path) -> None:
    generator = registry.build("var-d16")
    assert generator.conditioning == "class"
    assert registry.recommended("var-d16").guidance_scale == 2.5
    hub.repositories.clear()
    assert registry.locate("var-d16") == tmp_path / "home/var-d16"


def test_star_is_recognised_by_the_name_of_its_file(hub: Hub, tmp_path: Path) -> None:
    folder = registry.locate("star-d30-512")
    assert (folder / "tokenizer/config.json").is_file()
    with pytest.raises(InputError, match=r"has no file for star-d30-256, expected one .*star convert star FILE .*-256"):
        registry.locate("star-d30-256")
    assert not (tmp_path / "home/star-d30-256").exists()


def test_a_download_that_differs_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.lie = "0" * 64
    with pytest.raises(InputError, match=r"var_d16\.pth differs from the sha256 that FoundationVision/var publishes"):
        registry.locate("var-d16")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", RELEASED)
def test_offline_the_error_says_what_to_fetch_and_where_to_put_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "home"))
    assert main(["sample", "1", "--model", name, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    released = RELEASED[name]
    assert f"fetch {released.file or 'the file of ' + name} from https://huggingface.co/{released.hub}" in message
    assert ("vae_ch160v4096z32.pth beside it" in message) == (released.kind == "var")
    assert f"star convert {released.kind} FILE {tmp_path / 'home' / name} --preset {name}" in message
    assert list(tmp_path.iterdir()) == []


def test_every_release_of_star_is_told_from_the_others() -> None:
    found = [choose(NAMES, released) for released in RELEASED.values() if released.hub == STAR_HUB]
    assert found == [[name] for name in NAMES[1:]]
