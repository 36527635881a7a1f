"""FID's Inception as an extractor, with either of the two resizes that published numbers were made with.

    "inception"               the graph's own, as TensorFlow 1, torch-fidelity and so torchmetrics compute it: first
                              pixels meet, no antialiasing, (pixel - 128) / 128
    "inception-pytorch-fid"   pytorch-fid's: centres of pixels meet, no antialiasing, pixel / 127.5 - 1

Neither filters before it takes fewer pixels, so a picture larger than 299 is aliased: that is what those numbers are.
Shapes: B pictures, H W pixels, 3 RGB.
"""

from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor

from star.data.errors import InputError
from star.data.images import pixels_to_image
from star.eval.extractors.inception_network import SIDE, WIDTH, InceptionNetwork
from star.generators.pickle_loader import CheckpointFile
from star.generators.pretrained import digest, load_into

# The same tensors, as two projects publish them; the name ends with the first digits of the file's sha256.
SOURCES = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
)


class Inception:
    """The pooled last block."""

    width = WIDTH

    def __init__(self, name: str = "inception", device: str | torch.device = "cpu") -> None:
        """name: as above. Raises InputError if the weights are neither here nor to be had."""
        self.name = name
        self.legacy = name == "inception"
        self.resize = f"bilinear-{'tensorflow-1' if self.legacy else 'torch'} {SIDE}x{SIDE}"
        network = InceptionNetwork()
        file = weights()
        tensors = _tensors(file)
        # Its last layer tells classes; the counts are those of a training that nobody repeats.
        kept = {
            key: value.float()
            for key, value in tensors.items()
            if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
        }
        load_into(network, kept, file)
        self.network, self.device = network.to(device).eval().requires_grad_(False), torch.device(device)
        self.digest = digest({"resize": self.resize}, network.state_dict())

    @torch.no_grad()
    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        pixels_B3HW = pixels_B3HW.to(self.device)
        if self.legacy:
            image_B3HW = (resize_legacy(pixels_B3HW.float(), SIDE) - 128) / 128
        else:
            image_B3HW = F.interpolate(pixels_to_image(pixels_B3HW), (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.network(image_B3HW).cpu()


def weights() -> Path:
    """The file of the weights, downloaded where torch.hub keeps such files. Raises InputError if it cannot be had."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    names = [Path(source).name for source in SOURCES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): set TORCH_HOME to another folder") from error
    for source, name in zip(SOURCES, names, strict=True):
        try:
            torch.hub.download_url_to_file(source, str(folder / name), hash_prefix="6726825d", progress=False)
        except (URLError, OSError, RuntimeError):  # the last: a file that is not what its name says
            continue
        return folder / name
    raise InputError(
        f"the weights of FID's Inception could not be downloaded from {' or '.join(SOURCES)}: put one of these files "
        f"into {folder}, or ask for metrics of another network"
    )


def _tensors(file: Path) -> CheckpointFile:
    try:
        return CheckpointFile(file)
    except KeyError as error:
        raise InputError(f"{file} holds no tensors by name: remove it, and it is fetched anew") from error


def resize_legacy(image_B3HW: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear resize: pixel i of the result lies at i * old / new of the picture, edges repeated."""
    rows, columns = (_weights(size, side).to(image_B3HW) for size in image_B3HW.shape[-2:])
    return rows @ image_B3HW @ columns.T


def _weights(size: int, side: int) -> Tensor:
    """(side, size) float32: the share of each old pixel in each resized one."""
    place = torch.arange(side, dtype=torch.float64) * (size / side)
    low = place.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = (place - low).float()[:, None]
    matrix = torch.zeros(side, size)
    matrix.scatter_add_(1, low[:, None], 1 - share)
    return matrix.scatter_add_(1, high[:, None], share)
