"""What the events of the page do: values of components in, values of components out. See page.py for which is which."""

import json
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from PIL import Image, ImageChops

from star.data.errors import InputError
from star.demo.studio import MOST_MODELS, Studio, Wish

CANVAS = 384  # pixels of the side on which a mask is painted
REMEMBERED = 24  # pictures of a gallery
SETTINGS = ("prompt", "models", "seed", "guidance", "more", "made")  # what the browser remembers
P = ParamSpec("P")
T = TypeVar("T")


def refusing(work: Callable[P, T]) -> Callable[P, T]:
    """A function whose InputError is shown as a sentence."""

    @wraps(work)
    def refused(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return refused


def refusing_each(work: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """The same for a generator function."""

    @wraps(work)
    def refused(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        try:
            yield from work(*args, **kwargs)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return refused


def wish_of(prompt: str, seed: str, guidance: str, more: str) -> Wish:
    """What the fields say; an empty one says nothing. Raises InputError for what is no number or no JSON object."""
    try:
        options = json.loads(more) if more and more.strip() else {}
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict) or len(more) > 1000:
        raise InputError('further options cannot be read, expected a JSON object such as {"temperature": 0.8}: mend it')
    return Wish(
        prompt=prompt or "",
        seed=_number("seed", seed, int),
        guidance=_number("guidance", guidance, float),
        more=options,
    )


def _number(name: str, text: str, kind: type[T]) -> T | None:
    try:
        return kind(text) if text and text.strip() else None  # type: ignore[call-arg]
    except ValueError as error:
        raise InputError(f"{name} is {text!r:.20}, expected a number: correct it, or leave it empty") from error


def mask_of(painted: Any) -> Image.Image:
    """White where something was painted on the editor's layers. Raises InputError if nothing was."""
    layers = [layer for layer in (painted or {}).get("layers") or () if layer is not None]
    mask = Image.new("L", layers[0].size if layers else (1, 1))
    for layer in layers:
        mask = ImageChops.lighter(mask, layer.getchannel("A").point(lambda alpha: 255 if alpha else 0))
    if not mask.getbbox():
        raise InputError("nothing is painted over, expected the part that is to be drawn anew: paint on the picture")
    return mask


def _added(keys: list[str], made: list[str]) -> list[str]:
    """The gallery with new pictures in front; the oldest leave it."""
    return [*keys, *made][:REMEMBERED]


class Events:
    """The last drawn or chosen picture is `current`, a key of the studio; `made` are the keys of the gallery."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.models = studio, list(studio.sources)
        self.varying = [model for model in self.models if studio.varies(model)]

    @staticmethod
    def remember(*values: Any) -> dict[str, Any]:
        """What the browser is to keep, in the order of SETTINGS."""
        return dict(zip(SETTINGS, values, strict=True))

    def draw(
        self, models: list[str], prompt: str, seed: str, guidance: str, more: str, made: list[str]
    ) -> Iterator[tuple[Any, ...]]:
        """Shows each picture after each of its scales."""
        wish = wish_of(prompt, seed, guidance, more).checked()
        models = list(models or ())
        slots = [
            gr.update(visible=number < max(1, len(models)), value=None, label="Picture")
            for number in range(MOST_MODELS)
        ]
        nothing = (gr.skip(),) * 5
        keys: list[str] = []
        whole = [gr.skip() for _ in range(MOST_MODELS)]
        for frame in self.studio.grow(models, wish):
            place = models.index(frame.model)
            label = frame.model if frame.key else f"{frame.model}: scale {frame.scale} of {frame.scales}"
            value = str(self.studio.path(frame.key)) if frame.key else frame.image
            slots[place] = gr.update(visible=True, value=value, label=label)
            status = f"{frame.model}, seed {wish.seed}: scale {frame.scale} of {frame.scales}"
            yield (*slots, status, *nothing)
            if frame.key:
                whole[place] = gr.update(visible=True, value=value, label=label)  # each is used up when it is sent
                keys.append(frame.key)
            slots = [gr.skip() for _ in range(MOST_MODELS)]
        made = _added(keys, made)
        yield (*whole, f"seed {wish.seed}, drawn with {', '.join(models)}", *self._shared(keys[0], made))

    def vary(
        self,
        current: str,
        models: list[str],
        prompt: str,
        seed: str,
        guidance: str,
        more: str,
        keep: str,
        count: float,
        made: list[str],
    ) -> tuple[Any, ...]:
        """Variations of the chosen picture."""
        model = self._varying_of(models)
        keys = self.studio.vary(current, model, wish_of(prompt, seed, guidance, more), keep, int(count))
        made = _added(keys, made)
        return [self._file(key) for key in keys], f"{len(keys)} variations by {model}", made, self._files(made)

    def inpaint(
        self,
        current: str,
        models: list[str],
        prompt: str,
        seed: str,
        guidance: str,
        more: str,
        painted: Any,
        made: list[str],
    ) -> tuple[Any, ...]:
        """The chosen picture with what is painted over drawn anew."""
        model = self._varying_of(models)
        key = self.studio.inpaint(current, model, wish_of(prompt, seed, guidance, more), mask_of(painted))
        made = _added([key], made)
        return self._file(key), f"drawn anew by {model}", made, self._files(made)

    def choose(self, made: list[str], event: gr.SelectData) -> tuple[Any, ...]:
        """A picture of the gallery becomes the one to vary, to paint over and to download."""
        present = self._present(made)
        if not isinstance(event.index, int) or event.index >= len(present):
            raise InputError("that picture is not here any more: draw it again")
        key = present[event.index]
        return key, self._downloading(key), self._canvas(key), f"chosen: {Path(key).name}"

    def take(self, dropped: str | None, made: list[str]) -> tuple[Any, ...]:
        """Settings of a picture that was dropped here."""
        if not dropped:
            raise InputError("no file came, expected a PNG that was drawn here or by `star sample`: drop one")
        key, record = self.studio.take(dropped)
        made = _added([key], made)
        here = record.model in self.models
        options = dict(record.options)
        guidance = options.pop("guidance_scale", None)
        own = self.studio.sources[record.model] if here else None
        more = {
            name: value
            for name, value in options.items()
            if own is None or value != getattr(own.recommended, name, None)
        }
        heeds = getattr(own.family, "heeds", None) if own else None
        more = {name: value for name, value in more.items() if heeds is None or name in heeds}
        guidance = guidance if heeds is None or "guidance_scale" in heeds else None
        status = f"settings of {Path(key).name}"
        if not here:
            status += f"; its model, {record.model}, is not on this page"
        elif own is not None and record.digest and record.digest != own.digest:
            status += "; its model had other weights than the one of that name here"
        return (
            record.prompt,
            [record.model] if here else gr.skip(),
            str(record.seed),
            "" if guidance is None else f"{guidance:g}",
            json.dumps(more) if more else "",
            status,
            *self._shared(key, made),
        )

    def restore(self, kept: dict[str, Any] | None) -> tuple[Any, ...]:
        """What the browser remembered, after a reload."""
        kept = kept if isinstance(kept, dict) else {}
        if "prompt" not in kept:
            return (gr.skip(),) * 10
        made = self._present([key for key in kept.get("made") or () if isinstance(key, str)])
        models = [model for model in kept.get("models") or () if model in self.models]
        fields = (
            kept.get("prompt"),
            models or self.models[:1],
            kept.get("seed"),
            kept.get("guidance"),
            kept.get("more"),
        )
        return (*fields, *(self._shared(made[0], made) if made else (gr.skip(),) * 5))

    # ---- values of components

    def _shared(self, key: str, made: list[str]) -> tuple[Any, ...]:
        return key, made, self._files(made), self._downloading(key), self._canvas(key)

    def _present(self, made: list[str]) -> list[str]:
        found = []
        for key in made:
            try:
                self.studio.path(key)
            except InputError:  # removed since, or of another start of the server
                continue
            found.append(key)
        return found

    def _files(self, made: list[str]) -> list[str]:
        return [self._file(key) for key in self._present(made)]

    def _file(self, key: str) -> str:
        return str(self.studio.path(key))

    def _downloading(self, key: str) -> Any:
        return gr.update(value=self._file(key), interactive=True)

    def _canvas(self, key: str) -> Any:
        """The picture, large enough to be painted over, with nothing painted yet."""
        with Image.open(self.studio.path(key)) as picture:
            large = picture.convert("RGBA").resize((CANVAS, CANVAS), Image.Resampling.NEAREST)
        return {"background": large, "layers": [], "composite": large}

    def _varying_of(self, models: list[str]) -> str:
        found = [model for model in models or () if model in self.varying]
        if not found:
            raise InputError(f"no next-scale model is chosen, expected one of {', '.join(self.varying)}: tick one")
        return found[0]
