"""Frozen text encoders: prompts in, TextFeatures out, one code path for every kind in `text_towers.py`.

A CLIP is read without transformers, whose import takes longer than drawing a picture (star.data.clip_text).

A source is a directory or a hub id: a whole CLIP with its tokenizer (clip-emoji, OpenAI's), a text tower with its
tokenizer, or the two sub-folders `text_encoder/` and `tokenizer/` of a diffusion pipeline (SD-2.1). Prompts are padded
to the encoder's full length, so shapes never depend on the batch; the mask goes into the tower and comes out with the
states. Shapes: B batch, T text tokens, D text width.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn

from star.data import clip_text, clip_words
from star.data.clip_text import ClipTextTower
from star.data.clip_words import ClipWords
from star.data.errors import InputError
from star.data.pretrained import check_files, check_folder, check_size, folder_of, loading
from star.data.text_towers import TOWERS, kinds, tower_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# What a snapshot needs; pickled weights are left out on purpose: loading them can run code.
HUB_FILES = (
    ["config.json", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "spiece.model"]
    + ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "tokenizer/*"]
    + ["text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model-*.safetensors"]
    + ["text_encoder/model.safetensors.index.json"]
)
PROBES = ("", "a photo of a cat", "Naïve 12:30 — 🍎 שלום!", "flibbertigibbet's <|endoftext|></s>")


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Encoded prompts.

    tokens_BTD: last hidden states, unprojected, zero where masked. mask_BT: bool, True for the prompt's own tokens
    (BOS and EOS count). pooled_BD: one state for the prompt, as its kind pools (`text_towers.TextTower`).
    """

    tokens_BTD: Tensor
    mask_BT: Tensor
    pooled_BD: Tensor

    def __post_init__(self) -> None:
        if self.tokens_BTD.shape[:2] != self.mask_BT.shape or self.mask_BT.dtype != torch.bool:
            raise ValueError(
                f"mask_BT must be bool of shape {tuple(self.tokens_BTD.shape[:2])}, "
                f"got {self.mask_BT.dtype} of shape {tuple(self.mask_BT.shape)}."
            )
        if self.pooled_BD.shape != (self.tokens_BTD.shape[0], self.tokens_BTD.shape[2]):
            raise ValueError(
                f"pooled_BD of shape {tuple(self.pooled_BD.shape)} does not belong to tokens_BTD "
                f"of shape {tuple(self.tokens_BTD.shape)}."
            )

    def __len__(self) -> int:
        return len(self.tokens_BTD)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> "TextFeatures":
        """The chosen prompts; one index gives a batch of one."""
        if isinstance(index, int):
            index = [index]
        elif not isinstance(index, slice | Tensor):
            index = list(index)
        return TextFeatures(self.tokens_BTD[index], self.mask_BT[index], self.pooled_BD[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TextFeatures":
        """Moved; the dtype is that of the states, the mask stays bool."""
        return TextFeatures(
            self.tokens_BTD.to(device=device, dtype=dtype),
            self.mask_BT.to(device=device),
            self.pooled_BD.to(device=device, dtype=dtype),
        )

    @staticmethod
    def cat(parts: "Sequence[TextFeatures]") -> "TextFeatures":
        """Batches of one encoder, one after the other."""
        return TextFeatures(
            torch.cat([part.tokens_BTD for part in parts]),
            torch.cat([part.mask_BT for part in parts]),
            torch.cat([part.pooled_BD for part in parts]),
        )


class TextEncoder(nn.Module):
    """A text tower that stays in evaluation mode and takes no gradient, and the tokenizer that belongs to it."""

    def __init__(
        self,
        tower: "ClipTextTower | PreTrainedModel",
        tokenizer: "ClipWords | PreTrainedTokenizerBase",
        max_tokens: int | None = None,
    ) -> None:
        """max_tokens: BOS and EOS included; if None, all positions of the tower, or as many as its kind says."""
        super().__init__()
        self.tower: Any = tower.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.kind = tower_of(tower.config.model_type)
        limit = self.kind.limit(tower.config)
        self.max_tokens: int = max_tokens or limit or self.kind.max_tokens
        self.width: int = tower.config.hidden_size
        self._stored = {name: value.dtype for name, value in tower.state_dict().items()}
        self._check(limit)

    def _check(self, limit: int | None) -> None:
        """Refuses a tokenizer that does not belong to the tower: such a pair runs, and encodes nonsense."""
        if limit and self.max_tokens > limit:
            raise InputError(f"max_tokens is {self.max_tokens}, but this tower has {limit} positions; give fewer.")
        rows = self.tower.get_input_embeddings().num_embeddings
        tokens = max([len(self.tokenizer), *(place + 1 for place in self.tokenizer.get_vocab().values())])
        if tokens > rows:
            raise InputError(
                f"The tokenizer has {tokens} tokens and the text tower only {rows}; "
                "give the directory in which both were saved together."
            )
        if self.tokenizer.pad_token_id is None:
            raise InputError("The tokenizer has no padding token; give one saved with its tower.")
        if self.kind.ends_at_eos:
            last = self._ids("")[-1]
            # 2 is what configurations before transformers 4.31 say; the tower then takes the highest id for EOS.
            expected = (
                self.tower.config.eos_token_id if self.tower.config.eos_token_id != 2 else len(self.tokenizer) - 1
            )
            if last != expected:
                raise InputError(
                    f"The tokenizer ends a prompt with id {last}, but the tower looks for EOS {expected}; "
                    "give the directory in which both were saved together."
                )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        max_tokens: int | None = None,
    ) -> Self:
        """Loads a directory or hub id (see the module's text). dtype: float32 if None, whatever was stored.

        Raises InputError where nothing usable is found, a weight is missing, or tower and tokenizer disagree.
        """
        root = folder_of(source, HUB_FILES, "a text encoder")
        tower_at = root / "text_encoder" if (root / "text_encoder").is_dir() else root
        tokenizer_at = root / "tokenizer" if (root / "tokenizer").is_dir() else root
        if not (tower_at / "config.json").exists():
            raise InputError(
                f"{source} holds no text encoder: no config.json there, nor a text_encoder folder with one."
            )
        kind = check_folder(tower_at, kinds())
        check_files(tokenizer_at)
        with loading(source, "a text encoder"):
            tower, tokenizer = _read_tower(tower_at, kind, source), _read_tokenizer(tokenizer_at)
            for name, value in tower.state_dict().items():
                if value.is_floating_point() and not all(bound.isfinite() for bound in value.aminmax()):
                    raise InputError(f"{source} has values in {name} that are infinite or not a number; get it again.")
            encoder = cls(tower, tokenizer, max_tokens)
            encoder.tokenize(PROBES[:1])
        target = dtype or torch.float32
        if any(torch.promote_types(stored, target) != target for stored in encoder._stored.values()):
            _ = encoder.digest  # of the stored weights, which the cast below cannot give back
        return encoder.to(device=device, dtype=target)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: frozen, whatever the network around it does."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return self.tower.device

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights' values and of the tokenizer's behaviour; the same for every device and wider dtype.

        Of kinds that other packages bring, the name of the pooling function counts, too. Values count as float32, so a
        copy written in a wider type than the original is still the same encoder.
        """
        total = hashlib.sha256()
        for name, value in sorted(self.tower.state_dict().items()):
            plain = value.detach().cpu().to(torch.float32 if value.is_floating_point() else torch.int64).contiguous()
            total.update(f"{name} {tuple(plain.shape)}\n".encode())
            total.update(plain.numpy().tobytes())
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        words = "".join(
            token.replace("</w>", " ").replace("▁", " ") for token, _ in vocabulary
        )  # exercises every merge
        total.update(repr([vocabulary, *(self._ids(probe) for probe in (*PROBES, words))]).encode())
        if self.tower.config.model_type not in TOWERS:
            total.update(f"{self.kind.pool.__module__}.{self.kind.pool.__qualname__}".encode())
        return total.hexdigest()

    def _ids(self, prompt: str) -> list[int]:
        """All token ids of a prompt, BOS and EOS included, not truncated; words like "<|endoftext|>" are plain text."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"Prompt {prompt!r} is not valid text: it holds half a character; retype it.") from error
        if isinstance(self.tokenizer, ClipWords):
            return self.tokenizer.ids(prompt)
        return self.tokenizer(prompt, truncation=False, verbose=False, split_special_tokens=True).input_ids

    def truncated(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens of each prompt do not fit and are lost."""
        return [max(0, len(self._ids(prompt)) - self.max_tokens) for prompt in prompts]

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids_BT int64 and mask_BT bool, T = max_tokens; a long prompt keeps its beginning and EOS, with a warning."""
        if isinstance(prompts, str):
            raise TypeError("Give a list of prompts, not one string.")
        ids_BT = torch.full((len(prompts), self.max_tokens), self.tokenizer.pad_token_id, dtype=torch.int64)
        mask_BT = torch.zeros(len(prompts), self.max_tokens, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids = self._ids(prompt)
            if len(ids) > self.max_tokens:
                logger.warning(
                    "Prompt %r has %d tokens; the first %d are kept.", _short(prompt), len(ids), self.max_tokens - 1
                )
                ids = [*ids[: self.max_tokens - 1], ids[-1]]
            ids_BT[row, : len(ids)] = torch.tensor(ids)
            mask_BT[row, : len(ids)] = True
        return ids_BT, mask_BT

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a directory that `from_pretrained` reads: tower and tokenizer in transformers' own format."""
        if isinstance(self.tower, ClipTextTower):
            self.tower.save_pretrained(path)
        else:
            from star.data.transformers_network import quiet_transformers

            with quiet_transformers():
                self.tower.save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, chunk: int | None = None) -> TextFeatures:
        """Encodes prompts; an empty one is valid and means no condition.

        chunk: prompts per forward pass; if None, 1 on the CPU and 64 elsewhere. Kernels choose their order of summation
        by the size of a batch: one at a time, a prompt's features are the same to the bit in any company.
        """
        ids_BT, mask_BT = self.tokenize(prompts)
        size = chunk or (1 if self.device.type == "cpu" else 64)
        parts = [
            self._forward(ids_bT.to(self.device), mask_bT.to(self.device))
            for ids_bT, mask_bT in zip(ids_BT.split(size), mask_BT.split(size), strict=True)
        ]
        return TextFeatures.cat(parts)

    def _forward(self, ids_BT: Tensor, mask_BT: Tensor) -> TextFeatures:
        output = self.tower(input_ids=ids_BT, attention_mask=mask_BT.long())
        tokens_BTD = output.last_hidden_state * mask_BT[..., None]
        return TextFeatures(tokens_BTD, mask_BT, self.kind.pool(output, tokens_BTD, mask_BT))


def _read_tower(folder: Path, kind: str, source: str | Path) -> Any:
    if kind in clip_text.KINDS and clip_text.reads(folder):
        config = clip_text.config_of(folder)
        check_size(folder, lambda: ClipTextTower(config))
        return ClipTextTower.from_folder(folder, source)
    if kind == clip_text.DUAL:
        raise InputError(f"{source} pairs pictures with another text tower than CLIP's; give that tower's own folder.")
    from star.data import transformers_text

    return transformers_text.read_tower(folder, tower_of(kind).load(), source)


def _read_tokenizer(folder: Path) -> Any:
    if clip_words.reads(folder):
        return ClipWords.from_folder(folder)
    from star.data import transformers_text

    return transformers_text.read_tokenizer(folder)


def text_projection(source: str | Path) -> Tensor | None:
    """CLIP's learned map (P, D) from the pooled state to the space shared with pictures; None without one."""
    root = folder_of(source, HUB_FILES, "a text encoder")
    check_files(root)
    for file in sorted((root / "text_encoder" if (root / "text_encoder").is_dir() else root).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if "text_projection.weight" in tensors.keys():  # noqa: SIM118  (no mapping: it has no __contains__)
                return tensors.get_tensor("text_projection.weight").float()
    return None


def _short(prompt: str, limit: int = 40) -> str:
    return prompt if len(prompt) <= limit else prompt[: limit - 1] + "…"
