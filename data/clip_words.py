"""CLIP's tokenizer on the `tokenizers` library alone, from a tokenizer.json as transformers' CLIPTokenizer writes it.

Of the file the vocabulary and the merges count; how text is normalised and cut into words is CLIP's own, as there.
"""

import json
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import RobertaProcessing

from star.data.files import read_json

CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
SPECIAL |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
LARGEST = 2**26  # bytes of a file
MOST = 4_000_000  # values in it


class ClipWords:
    """Prompts to token ids, BOS and EOS included."""

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], settings: dict[str, Any]) -> None:
        """settings: of tokenizer_config.json, kept for `save_pretrained`."""
        self.settings = settings
        special = {name: _content(settings.get(name)) or usual for name, usual in SPECIAL.items()}
        model = BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=special["unk_token"],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
        self._backend = Tokenizer(model)
        self._backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._backend.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in dict.fromkeys(special.values())]
        )
        first, last = special["bos_token"], special["eos_token"]
        self._backend.post_processor = RobertaProcessing(
            (last, vocabulary[last]), (first, vocabulary[first]), trim_offsets=False, add_prefix_space=False
        )
        self.pad_token_id = vocabulary[special["pad_token"]]

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        return self._backend.get_vocab(with_added_tokens=True)

    def ids(self, prompt: str) -> list[int]:
        """Of a prompt, not truncated; words like "<|endoftext|>" in it are plain text."""
        self._backend.encode_special_tokens = True
        return self._backend.encode(prompt).ids

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Reads tokenizer.json and tokenizer_config.json; `reads` tells whether they will do."""
        model = read_json(folder / "tokenizer.json", "a tokenizer", largest=LARGEST, most=MOST)["model"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        merges = [(first, second) for first, second in pairs]
        return cls(model["vocab"], merges, read_json(folder / "tokenizer_config.json"))

    def save_pretrained(self, path: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        values = {"tokenizer_class": "CLIPTokenizer"} | SPECIAL | self.settings
        text = json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")


def reads(folder: Path) -> bool:
    """Whether a folder's tokenizer is CLIP's with no word added to its vocabulary."""
    file, settings_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not (file.exists() and settings_file.exists()) or (folder / "added_tokens.json").exists():
        return False
    settings, values = read_json(settings_file), read_json(file, "a tokenizer", largest=LARGEST, most=MOST)
    model, added = values.get("model"), values.get("added_tokens")
    if settings.get("tokenizer_class") not in CLASSES or not isinstance(model, dict) or model.get("type") != "BPE":
        return False
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list) or not isinstance(added, list):
        return False
    special = {_content(settings.get(name)) or usual for name, usual in SPECIAL.items()}
    names = ("extra_special_tokens", "additional_special_tokens", "add_bos_token", "add_eos_token")
    more = any(settings.get(name) for name in names) or not _is_around(values.get("post_processor"), settings)
    more = more or any(not isinstance(one, dict) or one.get("content") not in special for one in added)
    listed = settings.get("added_tokens_decoder") or {}
    more = more or any(_content(one) not in special for one in listed.values())
    return not more and all(isinstance(vocabulary.get(token), int) for token in special)


def _is_around(processor: Any, settings: dict[str, Any]) -> bool:
    """Whether a post-processor puts BOS before and EOS after a prompt, as `ClipWords` does."""
    ends = [_content(settings.get(name)) or SPECIAL[name] for name in ("bos_token", "eos_token")]
    if not isinstance(processor, dict) or processor.get("type") != "RobertaProcessing":
        return False
    found = [processor.get("cls"), processor.get("sep")]
    return [pair[0] if isinstance(pair, list) and pair else None for pair in found] == ends


def _content(token: Any) -> str | None:
    """Of a special token as the library writes it: its text, or an object with it."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None
