"""Folders in transformers' format, of unknown origin: checked before the library sees them.

    with loading(folder, "a text encoder"):
        check_folder(folder, ["clip", "t5"])
        tower = CLIPTextModel.from_pretrained(folder, **SAFE)

The library would run code that a folder brings along if asked to, fetch kernels that it names, follow an adapter to
another folder, and build whatever sizes it reads. So: kinds are those asked for, nothing in it names code, sizes are
within reason and need no more numbers than the safetensors files hold, and every file is a file of bounded size.
"""

import re
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from star.data.errors import InputError
from star.data.files import check_regular, check_safetensors, described, read_json, shorten
from star.data.unfilled import unfilled

SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}  # for every call into the library
SAFE_MODEL = SAFE | {"use_safetensors": True}
LARGEST_VOCABULARY = 2**26  # bytes of a tokenizer's file; that of 250,000 words in all languages has 2^24
MOST_WORDS = 4_000_000  # values in it
FEW = 2**22  # numbers, 16 MiB
MOST_GROWTH = 64  # letters that a tokenizer's normaliser may make of one
# What is fetched of a hub repository of an image model; pickled weights never are: loading them can run code.
VISION_FILES = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
VISION_KINDS = (
    *("clip", "clip_vision_model", "siglip", "siglip_vision_model", "vit", "deit", "beit", "dinov2", "swin"),
    *("dinov2_with_registers", "dinov3_vit", "dinov3_convnext", "resnet", "regnet", "convnext", "convnextv2"),
    *("vit_mae", "vit_msn", "data2vec-vision", "efficientnet", "mobilenet_v2"),
)
# And of a CLIP with its tokenizer.
CLIP_FILES = (*VISION_FILES, "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
# What has the library run or fetch something.
CODE = ("auto_map", "custom_pipelines", "quantization_config", "trust_remote_code", "use_kernels")
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
TOKENIZERS = re.compile(r"(CLIP|T5|Bert|PreTrained)Tokenizer(Fast)?|TokenizersBackend")
SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "d_kv", "projection_dim", "embedding_size"), 2**14),
    **dict.fromkeys(("intermediate_size", "d_ff", "max_position_embeddings", "n_positions", "hidden_sizes"), 2**17),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers", "depths"), 256),
    **dict.fromkeys(("num_attention_heads", "num_heads", "relative_attention_num_buckets"), 1024),
    **dict.fromkeys(("image_size", "patch_size", "num_register_tokens", "num_channels"), 2**12),
    "vocab_size": 2**20,
}


def folder_of(source: str | Path, files: Collection[str], expected: str) -> Path:
    """The folder itself, or the local copy of a hub repository, fetched if need be.

    files: patterns of what is fetched. Raises InputError if the source is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        return snapshot(str(source), files)
    except (OSError, ValueError) as error:  # no network, no such repository, not a repository name at all
        raise InputError(
            f"{source} is neither a folder here nor a hub repository within reach, expected {expected} in "
            "transformers' format: check the path, or fetch the repository first where the hub can be reached"
        ) from error


def snapshot(hub_id: str, files: Collection[str]) -> Path:
    """The local copy of a hub repository; where the hub cannot be reached, what an earlier download left.

    Raises what the library raises, OSError or ValueError for the most part.
    """
    from huggingface_hub import HfApi, snapshot_download  # takes a while, and most never need it

    reachable = True
    try:
        HfApi().model_info(hub_id, timeout=10)  # the download itself would try for most of a minute
    except Exception:  # whatever the reason: what an earlier download left may still do
        reachable = False
    return Path(snapshot_download(hub_id, allow_patterns=list(files), local_files_only=not reachable))


@contextmanager
def loading(source: str | Path, expected: str) -> Iterator[None]:
    """What the library stumbles over in a folder, as an InputError that says what the folder should hold."""
    with described(source, "give the folder in which it was saved, whole", f"could not be loaded as {expected}"):
        yield


def check_folder(folder: Path, kinds: Collection[str]) -> str:
    """The kind of model (`model_type`) that a folder holds. Raises InputError as the module says."""
    check_files(folder)
    config = read_json(folder / "config.json", "the config.json of a model in transformers' format")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(
            f"{folder / 'config.json'} is of a {shorten(repr(kind), 60)} model, expected one of {', '.join(kinds)}: "
            "give another folder"
        )
    _check_values(config, folder / "config.json")
    return kind


def check_files(folder: Path) -> None:
    """Raises InputError unless all files that the library may read are files of bounded size that name no code."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if path.suffix not in (".json", ".txt", ".model", ".safetensors", ".jinja"):
            if path.exists() and not stat.S_ISREG(path.stat().st_mode):
                raise InputError(f"{path} is a pipe or a device, expected files alone: remove it")
            continue
        size = check_regular(path, "a file of a model in transformers' format")
        if path.suffix == ".safetensors":
            check_safetensors(path)
        elif size > LARGEST_VOCABULARY:
            raise InputError(f"{path} has {size} bytes, expected at most {LARGEST_VOCABULARY}: give the right folder")
        if path.name == "adapter_config.json":
            raise InputError(f"{folder} holds an adapter of another model, expected a whole model: merge it first")
        if path.name.endswith((".index.json", "_config.json", "special_tokens_map.json")):
            _check_description(path)
        elif path.name == "tokenizer.json":
            _check_tokenizer(path)


def as_saved(tokenizer: Any) -> Any:
    """A tokenizer that was loaded with `SAFE`, without what it would write of that call into its own description."""
    for name in (*SAFE, "is_local"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def check_size(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Raises InputError if a network that its config describes needs more numbers than the folder's files hold.

    build: makes the network; it is called on the meta device, where nothing is taken.
    """
    with unfilled():
        needed = sum(parameter.numel() for parameter in build().parameters())
    held = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in list(tensors.keys()):
                numbers = 1
                for side in tensors.get_slice(name).get_shape():
                    numbers *= side
                held += numbers
    if needed > max(held, FEW):  # what fewer lack is named by the library
        raise InputError(
            f"{folder / 'config.json'} describes a network of {needed} numbers, the safetensors files beside it hold "
            f"{held}: give the folder in which both were saved together"
        )


def _check_description(path: Path) -> None:
    values = read_json(path, most=MOST_WORDS)
    _check_code(values, path)
    kind = values.get("tokenizer_class")
    if path.name == "tokenizer_config.json" and kind is not None and not TOKENIZERS.fullmatch(str(kind)):
        raise InputError(
            f"{path} asks for a {shorten(kind, 60)}, expected the tokenizer of CLIP, T5 or BERT: give another folder"
        )
    if path.name.endswith(".index.json"):
        places = values.get("weight_map")
        if not isinstance(places, dict) or any(Path(str(name)).name != name for name in places.values()):
            raise InputError(f"{path} names files outside of its folder, expected those beside it: get the folder anew")


def _check_code(values: Any, path: Path) -> None:
    """Raises InputError where anything in JSON values would have the library run or fetch code."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for name, inner in value.items():
                attention = "attn_implementation" in name and inner is not None and inner not in ATTENTION
                if attention or (name in CODE and inner):
                    raise InputError(
                        f"{path} has {shorten(name)}, by which code of others would be run, expected weights and "
                        "sizes alone: it was not loaded, give a model that transformers has itself"
                    )
            waiting += value.values()


def _check_values(config: dict[str, Any], path: Path) -> None:
    """Raises InputError for code, and for sizes that are none."""
    _check_code(config, path)
    waiting = [config]
    while waiting:
        for name, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            elif name in SIZES and value is not None:
                for number in value if isinstance(value, list) else [value]:
                    if type(number) is not int or not 0 <= number <= SIZES[name]:
                        raise InputError(
                            f"{path} has {name} {shorten(repr(value), 60)}, expected a whole number up to "
                            f"{SIZES[name]}: get the folder again"
                        )


def _check_tokenizer(path: Path) -> None:
    """Raises InputError for a tokenizer whose rules would take a prompt's letters beyond all measure."""
    values = read_json(path, "a tokenizer", largest=LARGEST_VOCABULARY, most=MOST_WORDS)
    growth, waiting = 1, [values.get("normalizer"), values.get("pre_tokenizer")]
    while waiting:
        rule = waiting.pop()
        if isinstance(rule, list):
            waiting += rule
        elif isinstance(rule, dict):
            growth *= max(len(str(rule.get("content") or rule.get("prepend") or "")), 1)
            pattern = rule.get("pattern")
            regex = str(pattern.get("Regex", "")) if isinstance(pattern, dict) else ""
            if growth > MOST_GROWTH or len(regex) > 1000 or re.search(r"\)[*+{]|\\[1-9]", regex):
                raise InputError(
                    f"{path} has rules that repeat or lengthen a prompt without measure, expected those of CLIP, T5 "
                    "or BERT: give another folder"
                )
            waiting += [value for value in rule.values() if isinstance(value, dict | list)]
    template = values.get("post_processor")
    if isinstance(template, dict) and len(str(template)) > 100_000:
        raise InputError(f"{path} puts too many tokens around a prompt, expected those of CLIP, T5 or BERT: replace it")
