"""Extractors: whose rows they give, that they own the resize, and that a row belongs to one picture."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from star.data.errors import InputError
from star.data.images import pixels_to_image, read_png, save_png
from star.eval.extractors import inception
from star.eval.extractors.extractor import Extractor, TextExtractor, extractor, fitted, shipped
from star.eval.extractors.inception import Inception, resize_legacy
from star.eval.extractors.inception_network import BLOCKS, Block, InceptionNetwork

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pictures(count: int, height: int, width: int) -> Tensor:
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def stripes(side: int) -> Tensor:
    """Every third column white: a mean of 85, and finer than any network's own grid."""
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    pixels[..., ::3] = 255
    return pixels


def check(network: Extractor, tmp_path: Path, tolerance: float = 1e-4) -> None:
    """What holds for every extractor."""
    pixels = pictures(3, 40, 56)
    together = network(pixels)
    assert together.shape == (3, network.width)
    assert together.dtype == torch.float32
    alone = torch.cat([network(pixels[index : index + 1]) for index in (2, 1, 0)]).flip(0)
    torch.testing.assert_close(alone, together, atol=tolerance * float(together.abs().max()), rtol=0)
    save_png(pixels[1], tmp_path / "one.png")
    assert torch.equal(network(read_png(tmp_path / "one.png")[None]), alone[1:2])
    assert len({row.numpy().tobytes() for row in together}) == 3
    assert len(network.digest) == 64


# --- names ---


def test_unknown_names_are_refused_with_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean judge-emoji"):
        extractor("judge-emojis")
    with pytest.raises(InputError, match="no network 'clip:'"):
        extractor("clip:")
    with pytest.raises(InputError, match="missing"):
        shipped("no-such-network")


# --- judge-emoji ---


def test_judge_emoji_has_rows_of_single_pictures_and_none_of_prompts(tmp_path: Path) -> None:
    classifier = extractor("judge-emoji")
    check(classifier, tmp_path)
    assert (classifier.name, classifier.resize) == ("judge-emoji", "lanczos-antialias 64x64 cut")
    assert not isinstance(classifier, TextExtractor)
    assert isinstance(extractor("clip-emoji"), TextExtractor)
    assert extractor(f"judge:{shipped('judge-emoji')}").digest == classifier.digest


@pytest.mark.slow
def test_judge_emoji_tells_subjects_apart_whatever_the_style(shared: Path) -> None:
    """Real pictures: those of one subject lie nearer to each other than the others do."""
    from star.data.loader.pipeline import DataConfig, Pipeline

    classifier = extractor("judge-emoji")
    config = DataConfig(shards=(str(shared / "data/emoji/emoji-test-0000.tar"),), resolution=64)
    batch = next(iter(Pipeline(config, batch_size=200).one_pass()))
    rows = classifier(((batch.image_B3HW + 1) * 127.5).round().to(torch.uint8))
    similar = F.normalize(rows - rows.mean(dim=0)) @ F.normalize(rows - rows.mean(dim=0)).T
    subjects = [str(info["subject"]) for info in batch.info]
    counted = Counter(subjects)
    places = [place for place, subject in enumerate(subjects) if counted[subject] > 1]
    same = torch.tensor([[subjects[i] == subjects[j] for j in range(len(subjects))] for i in places])
    same[torch.arange(len(places)), torch.tensor(places)] = False
    assert len(places) > 30
    assert float(similar[places][same].mean()) > float(similar[places][~same].mean()) + 0.2


# --- resize ---


def test_fine_stripes_become_grey_and_not_coarse_ones() -> None:
    """The mistake of many harnesses: torch's interpolate, which has no antialiasing unless asked for it."""
    image = fitted(stripes(512)[0], 64)
    assert float(image[..., 4:-4].std()) < 0.05
    aliased = F.interpolate(pixels_to_image(stripes(512)), (64, 64), mode="bilinear", align_corners=False)
    assert float(aliased.std()) > 0.3


def test_the_middle_of_what_is_not_square_is_taken_and_the_right_size_left_alone() -> None:
    wide = torch.zeros(3, 64, 128, dtype=torch.uint8)
    wide[:, :, 32:96] = pictures(1, 64, 64)[0]
    assert torch.equal(fitted(wide, 64), pixels_to_image(pictures(1, 64, 64)[0]))
    assert torch.equal(fitted(wide[:, :, 32:96], 64), pixels_to_image(wide[:, :, 32:96]))


def test_the_resize_of_tensorflow_1() -> None:
    """Twice as large: every other pixel is an old one, those between are means, and the last is repeated."""
    image = torch.tensor([[[[0.0, 4.0, 8.0]]]]).expand(1, 1, 3, 3)
    assert resize_legacy(image, 6)[0, 0, 0].tolist() == [0, 2, 4, 6, 8, 8]
    assert torch.equal(resize_legacy(image, 3), image)
    down = resize_legacy(pictures(1, 598, 598).float(), 299)
    assert torch.equal(down, pictures(1, 598, 598).float()[:, :, ::2, ::2])  # half of the pixels are never looked at


# --- Inception ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where downloaded files are kept, with nothing in it and no way to download."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_inception_without_weights_says_where_to_put_them(hub: Path) -> None:
    with pytest.raises(InputError, match=r"could not be downloaded from .*6726825d.* put one of these files into"):
        extractor("inception")


def test_inception_is_as_large_as_the_published_one() -> None:
    with torch.device("meta"):
        network = InceptionNetwork()
    learnt = {name: value for name, value in network.state_dict().items() if not name.split(".")[-1].startswith("run")}
    assert sum(value.numel() for value in learnt.values()) == 21_785_568
    assert len([name for name in learnt if name.endswith("conv.weight")]) == 94
    state = network.state_dict()
    assert state["Mixed_6b.branch7x7dbl_2.conv.weight"].shape == (128, 128, 7, 1)
    assert state["Mixed_7c.branch_pool.conv.weight"].shape == (192, 2048, 1, 1)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Mixed_5b", [1, 4 / 6, 0]),
        ("Mixed_6e", [1, 4 / 6, 0]),
        ("Mixed_7b", [1, 4 / 6, 0]),
        ("Mixed_7c", [4, 4, 0]),
    ],
)
def test_averages_leave_the_border_out_and_the_last_pooling_takes_maxima(name: str, row: list[float]) -> None:
    """The two places where FID's graph is not the Inception of classifiers."""
    with torch.device("meta"):
        block = Block(8, *BLOCKS[name])
    corner = torch.zeros(1, 1, 3, 3)
    corner[..., 0, 0] = 4.0
    assert block._pooled(corner)[0, 0, 0].tolist() == pytest.approx(row)


@pytest.mark.slow
def test_inception_reads_the_published_names(hub: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = InceptionNetwork().state_dict()
    for value in tensors.values():
        if value.ndim == 4:
            value.normal_(std=(2 / value[0].numel()) ** 0.5)  # signals neither die nor explode
    tensors |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    tensors |= {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0)}
    file = hub / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(tensors, file)
    legacy, other = extractor("inception"), extractor("inception-pytorch-fid")
    check(legacy, tmp_path, tolerance=1e-3)
    assert isinstance(legacy, Inception)
    assert legacy.digest != other.digest
    pixels = pictures(1, 299, 299)  # nothing to resize: only the range differs, by 1 / 255
    near = (legacy(pixels) - other(pixels)).norm() / other(pixels).norm()
    small = pictures(1, 32, 32)
    far = (legacy(small) - other(small)).norm() / other(small).norm()
    assert near < far / 2
    del tensors["Mixed_5b.branch1x1.conv.weight"]
    torch.save(tensors, file)
    with pytest.raises(InputError, match=r"lacks Mixed_5b\.branch1x1\.conv\.weight"):
        inception.Inception()


# --- DINOv2 ---


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def test_dino_gives_the_normalised_class_token(dino: Path, tmp_path: Path) -> None:
    network = extractor(f"dino:{dino}")
    check(network, tmp_path)
    assert network.resize == "bicubic-antialias 224x224 cut"
    pixels = pictures(2, 224, 224)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    model = Dinov2Model.from_pretrained(dino).eval()
    with torch.no_grad():
        expected = model(pixel_values=(pixels / 255 - mean) / std).last_hidden_state[:, 0]
    torch.testing.assert_close(network(pixels), expected, atol=1e-5, rtol=0)


def test_what_is_no_dino_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is of a 'clip' model, expected one of dinov2"):
        extractor(f"dino:{shipped('guide-emoji')}")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        extractor(f"dino:{tmp_path}")
