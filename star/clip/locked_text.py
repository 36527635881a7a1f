"""A new image tower in front of a frozen text tower: the captions are the classes of one softmax.

Locked-image tuning the other way round (Zhai et al. 2022, LiT, section 3): the text tower is loaded and left as it is
to the bit, so whatever it conditions draws the same pictures; image tower, both projections and the temperature learn.
A frozen tower's states of all captions are computed once, so a picture is told from every caption there is, not from
those of its batch alone. Shapes: B pictures, M captions of a set, S styles, D width, 3HW image, P patches.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from star.clip.captions import PictureText
from star.clip.network import ClipConfig, Pair, build_clip, embed_images, end_states
from star.data.clip_pair import read_pair
from star.data.errors import InputError
from star.data.pretrained import SAFE, as_saved, folder_of, loading
from star.data.text import HUB_FILES
from star.generators.config import UNLESS_DEFAULT, check_ranges
from star.generators.registry import place_of

IMAGE_SIDE = ("vision_model.", "visual_projection.", "logit_scale")
LEARNT = (*IMAGE_SIDE, "text_projection.")  # all else is frozen
FORMS = 4  # captions of a picture that are used, from its first on


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedTextConfig:
    """Whose text tower is kept, and what a picture is told from."""

    init_from: str  # a CLIP in transformers' format: its text tower and tokenizer, and its image tower if that fits
    first_captions: float = 0.5  # share of the steps in which the classes are first captions; else the others, evenly
    phrases: float = 1.0  # weight of a second softmax, over captions without their style
    matching: float = 0.5  # weight of the texts' search for their pictures within a batch
    # Weight of a softmax over a picture's own words in every style there is, whether such a picture exists or not.
    styles: float = field(default=0.0, metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        check_ranges(self, first_captions=(0, 1), phrases=(0, 1e3), matching=(0, 1e3), styles=(0, 1e3))
        if not self.init_from:
            raise InputError("locked.init_from is empty, expected the CLIP whose text tower is kept: give its folder")


def load_locked(config: LockedTextConfig, network: ClipConfig) -> tuple[Pair, CLIPTokenizer]:
    """As `load_pair` gives them, with the text tower frozen."""
    model, tokenizer = load_pair(config.init_from, network)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(LEARNT))
    return model, tokenizer


def load_pair(init_from: str, network: ClipConfig) -> tuple[Pair, CLIPTokenizer]:
    """A model of the sizes in `network` with the text tower of `init_from`, and the tokenizer of both.

    The image tower starts from that of `init_from` where it has the same sizes, and else from fresh weights, with them
    its projection and the temperature. Raises InputError if there is no CLIP, or the text towers differ in size.
    """
    place = place_of(init_from)
    folder = folder_of(place, HUB_FILES, "a CLIP")
    with loading(place, "a CLIP"):
        given = read_pair(folder, source=place).state_dict()
        tokenizer = as_saved(CLIPTokenizer.from_pretrained(folder, **SAFE))
    model = build_clip(network, tokenizer)
    own = model.state_dict()
    vision = [name for name in own if name.startswith(IMAGE_SIDE)]
    if any(name not in given or given[name].shape != own[name].shape for name in vision):
        given = {name: value for name, value in given.items() if not name.startswith(IMAGE_SIDE)}
    wrong = [name for name, value in given.items() if name not in own or own[name].shape != value.shape]
    wrong += [name for name in own if name not in given and name not in vision]
    if wrong:
        raise InputError(
            f"The text tower of {init_from} has other sizes than the network ({wrong[0]} first), expected the "
            "same: give network.text_width, text_layers, text_mlp, max_tokens and projection as they are there"
        )
    model.load_state_dict(given, strict=False)
    return model, tokenizer


class CaptionClasses:
    """All captions of the training pictures in sets, the states of each at its end, and which rows are a picture's.

    Set 0 holds the first captions, the next ones the second and so on, the last the captions without their style. A
    picture that has none of a kind stands there under its first caption.
    """

    def __init__(
        self, pictures: Iterable[PictureText], model: Pair, tokenizer: CLIPTokenizer, *, styles: bool = False
    ) -> None:
        """styles: also the words of every picture in all styles, see `in_styles`. Raises InputError without any."""
        pictures = list(pictures)
        told = [self._texts(picture) for picture in pictures]
        self.rows: list[dict[str, int]] = [
            {text: row for row, text in enumerate(dict.fromkeys(texts))} for texts in zip(*told, strict=True)
        ]
        texts = list(dict.fromkeys(text for rows in self.rows for text in rows))
        states_MD = caption_states(model, tokenizer, texts)
        place = {text: row for row, text in enumerate(texts)}
        self.states_MD = [states_MD[[place[text] for text in rows]] for rows in self.rows]
        self.styles = sorted({style for picture in pictures if (style := picture.parts[1])}) if styles else []
        if styles and len(self.styles) < 2:
            raise InputError(
                f"the captions tell of {len(self.styles)} styles, expected 2 or more behind their last commas where "
                "styles are learnt: leave locked.styles at 0"
            )
        phrases = list(self.rows[FORMS])
        texts = [f"{phrase}, {style}" for phrase in phrases for style in self.styles]
        if texts:
            self.in_styles_MSD = caption_states(model, tokenizer, texts).unflatten(0, (len(phrases), -1))

    def in_styles(self, pictures: Sequence[PictureText]) -> Tensor:
        """States (B, S, D) of each picture's words in all styles."""
        return self.in_styles_MSD[[self.rows[FORMS][self._texts(picture)[FORMS]] for picture in pictures]]

    def style_targets(self, pictures: Sequence[PictureText]) -> Tensor:
        """target_B int64, each picture's style; -100 for none, which cross-entropy leaves out."""
        number = {style: row for row, style in enumerate(self.styles)}
        return torch.tensor([number.get(picture.parts[1], -100) for picture in pictures])

    @staticmethod
    def _texts(picture: PictureText) -> list[str]:
        """One text of each set."""
        captions = picture.captions[:FORMS]
        filled = [*captions, *[captions[0]] * (FORMS - len(captions))]
        return [*filled, picture.parts[0]]

    def draw(self, share: float, rng: random.Random) -> int:
        """The set of a step: the first captions with that share, else one of the others but the last, evenly."""
        forms = [form for form in range(1, FORMS) if len(self.rows[form]) > 1 and self.rows[form] != self.rows[0]]
        return 0 if rng.random() < share or not forms else rng.choice(forms)

    def targets(self, pictures: Sequence[PictureText], form: int) -> tuple[Tensor, Tensor]:
        """target_B int64, each picture's row in a set, and excluded_BM bool, other rows that are true of it, too."""
        rows = self.rows[form]
        target_B = torch.tensor([rows[self._texts(picture)[form]] for picture in pictures])
        excluded_BM = torch.zeros(len(pictures), len(rows), dtype=torch.bool)
        for number, picture in enumerate(pictures):
            true = [rows[claim[1]] for claim in picture.claims if claim[0] == "text" and claim[1] in rows]
            excluded_BM[number, true] = True
            excluded_BM[number, target_B[number]] = False
        return target_B, excluded_BM


@torch.no_grad()
def caption_states(model: Pair, tokenizer: CLIPTokenizer, texts: Sequence[str], chunk: int = 256) -> Tensor:
    """states_MD float32: each text's state at EOS, not yet projected. Texts of a length go together, which is cheap."""
    tower: Any = model.text_model
    limit = tower.embeddings.position_embedding.num_embeddings
    ids = tokenizer(list(texts), truncation=True, max_length=limit).input_ids
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    states_MD = torch.empty(len(ids), model.text_projection.in_features, device=model.device)
    for first in range(0, len(order), chunk):
        rows = order[first : first + chunk]
        padded = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        states_MD[rows] = end_states(model, padded.input_ids.to(model.device)).float()
    return states_MD


class LockedPair(nn.Module):
    """Image tower and both projections behind one forward pass, which is what several processes need."""

    def __init__(self, model: Pair) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image_B3HW: Tensor, keep_BP: Tensor | None, states_MD: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """image_BD, text_MD of each set of states, and the scale of their cosines, at most 100."""
        image_BD = embed_images(self.model, image_B3HW, keep_BP)
        text_MD = [F.normalize(self.model.text_projection(states).float(), dim=-1) for states in states_MD]
        return image_BD, text_MD, self.model.logit_scale.exp().clamp(max=100.0)


def class_loss(
    image_BD: Tensor, text_MD: Tensor, scale: Tensor, target_B: Tensor, excluded_BM: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of pictures over all captions of a set without the excluded ones, and the share that is right."""
    logits_BM = (scale * image_BD @ text_MD.T).masked_fill(excluded_BM, float("-inf"))
    return F.cross_entropy(logits_BM, target_B), (logits_BM.argmax(dim=1) == target_B).float().mean()


def matching_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor, target_B: Tensor) -> Tensor:
    """Cross-entropy of each picture's caption over the batch's pictures; others of the same caption do not count."""
    same_BB = (target_B[:, None] == target_B[None]).fill_diagonal_(False)
    logits_BB = (scale * text_BD @ image_BD.T).masked_fill(same_BB, float("-inf"))
    return F.cross_entropy(logits_BB, torch.arange(len(target_B), device=logits_BB.device))


def style_loss(image_BD: Tensor, text_MD: Tensor, scale: Tensor, target_B: Tensor) -> Tensor:
    """Cross-entropy of each picture over its words in all styles, M = B S in that order; 0 if none has a style."""
    text_BSD = text_MD.unflatten(0, (len(image_BD), -1))
    logits_BS = scale * torch.einsum("bd,bsd->bs", image_BD, text_BSD)
    return F.cross_entropy(logits_BS, target_B, reduction="sum") / (target_B >= 0).sum().clamp(min=1)


def locked_loss(
    config: LockedTextConfig,
    classes: CaptionClasses,
    pictures: Sequence[PictureText],
    form: int,
    embedded: tuple[Tensor, list[Tensor], Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and what is logged. embedded: of `LockedPair`, given the states of `form` and of phrases."""
    image_BD, (text_MD, phrase_MD, *styled), scale = embedded
    target_B, excluded_BM = (part.to(image_BD.device) for part in classes.targets(pictures, form))
    caption, found = class_loss(image_BD, text_MD, scale, target_B, excluded_BM)
    matching = matching_loss(image_BD, text_MD[target_B], scale, target_B)
    phrase_B, others_BM = (part.to(image_BD.device) for part in classes.targets(pictures, FORMS))
    phrase, phrase_found = class_loss(image_BD, phrase_MD, scale, phrase_B, others_BM)
    loss = caption + config.phrases * phrase + config.matching * matching
    values = {
        "loss/captions": caption,
        "loss/phrases": phrase,
        "loss/matching": matching,
        "found/phrases": phrase_found,
    }
    if styled:
        style_B = classes.style_targets(pictures).to(image_BD.device)
        values["loss/styles"] = style_loss(image_BD, styled[0], scale, style_B)
        loss = loss + config.styles * values["loss/styles"]
    return loss, {"loss": loss, "found": found, "scale": scale, **values}
