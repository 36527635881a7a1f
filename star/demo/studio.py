"""What the web page does, without the page: models loaded once, pictures that grow, files that say how they were made.

    studio = Studio(["star-emoji"], Path("pictures"))
    for frame in studio.grow(["star-emoji"], Wish(prompt="a red apple", seed=3)):
        frame.image, frame.scale, frame.scales, frame.file       # a file at the last one only

Pictures are told by a key such as "1f..9c/a-red-apple-3.png", which nobody can guess and which reaches no other file.
"""

import re
import secrets
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from PIL import Image
from torch import Tensor

from star.calls import Callback
from star.data.errors import InputError
from star.data.images import pixels_to_pil, read_png, save_png
from star.generator import StarGenerator
from star.generators import placement
from star.generators.config import to_dict
from star.pictures.names import slug
from star.pictures.record import Record
from star.pictures.source import Source
from star.pipeline import Drawn, Pipeline

LONGEST_PROMPT = 500  # characters
LARGEST_SEED = 2**31 - 1  # what a browser's numbers hold exactly
MOST_MODELS = 4  # side by side
MOST_VARIATIONS = 8
KEPT = 500  # files; the oldest are removed
KEY = re.compile(r"[0-9a-f]{32}/[^/\\]{1,255}\.png")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is to be drawn; None leaves it to the model, or to chance. more: other fields of SampleOptions."""

    prompt: str = ""
    seed: int | None = None
    guidance: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def checked(self) -> "Wish":
        """With a seed. Raises InputError for what is too long or out of range."""
        if len(self.prompt) > LONGEST_PROMPT:
            raise InputError(
                f"the prompt has {len(self.prompt)} characters, expected at most {LONGEST_PROMPT}: shorten it"
            )
        seed = secrets.randbelow(LARGEST_SEED) if self.seed is None else self.seed
        if not 0 <= seed <= LARGEST_SEED:
            raise InputError(f"seed is {seed}, expected 0 to {LARGEST_SEED}: choose another one")
        return Wish(prompt=self.prompt, seed=seed, guidance=self.guidance, more=self.more)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A picture as far as it is drawn: after `scale` of `scales`; `key` tells its file once it is whole."""

    model: str
    image: Image.Image
    scale: int
    scales: int
    key: str = ""


class Studio:
    """Models and pictures of one page. Draws one picture at a time, whoever asks."""

    def __init__(
        self, models: Sequence[str], folder: Path, device: str | None = "cpu", dtype: str = placement.AUTO
    ) -> None:
        """models: what may be drawn with. folder: for the pictures. device, dtype: as placement.placed has them.

        Raises InputError for a model or a device that is not there.
        """
        self.folder = folder
        self.sources = {model: Source.find(model) for model in models}
        self.places = {model: placement.placed(device, dtype, model) for model in models}
        self._pipes: dict[str, Pipeline] = {}
        self._made: deque[str] = deque()
        self._loading, self._keeping = Lock(), Lock()
        self._worker = ThreadPoolExecutor(1)  # one thread draws everything: one picture at a time, memory that stays
        folder.mkdir(parents=True, exist_ok=True)

    # ---- what the page asks for

    def grow(self, models: Sequence[str], wish: Wish) -> Iterator[Frame]:
        """Draws with one model after the other; a next-scale model shows the picture after each scale.

        Raises InputError for a wish that cannot be fulfilled, before anything is drawn.
        """
        if not 1 <= len(models) <= MOST_MODELS:
            raise InputError(f"{len(models)} models were chosen, expected 1 to {MOST_MODELS}: choose some")
        wish = wish.checked()
        asked = [(self._known(model), self._options(model, wish, len(models) > 1)) for model in models]
        for source, options in asked:
            yield from self._frames(source, wish, options)

    def vary(self, key: str, model: str, wish: Wish, keep: str, count: int) -> list[str]:
        """Keys of variations of a picture, see Pipeline.vary; the wish's seed is that of the first."""
        if not 1 <= count <= MOST_VARIATIONS:
            raise InputError(f"{count} variations were asked for, expected 1 to {MOST_VARIATIONS}: correct it")
        wish, source, path = wish.checked(), self._known(model), self.path(key)
        options = self._options(model, wish)
        vary = partial(self.pipe(model).vary, keep=keep, num_images=count, seed=wish.seed, output_type="np")
        drawn = self._worker.submit(vary, path, wish.prompt, **options).result()
        return self._keep(source, drawn, "vary", {"picture": path.name, "keep": keep})

    def inpaint(self, key: str, model: str, wish: Wish, mask: Image.Image) -> str:
        """The key of a picture in which what the mask covers (white) is drawn anew, see Pipeline.inpaint."""
        wish, source, path = wish.checked(), self._known(model), self.path(key)
        options = self._options(model, wish)
        inpaint = partial(self.pipe(model).inpaint, seed=wish.seed, output_type="np")
        drawn = self._worker.submit(inpaint, path, mask, wish.prompt, **options).result()
        return self._keep(source, drawn, "inpaint", {"picture": path.name})[0]

    def take(self, path: str | Path) -> tuple[str, Record]:
        """Keeps a picture that somebody brought; its key, and what it says of how it was made.

        Raises InputError for a file that says nothing of it.
        """
        record, pixels_3HW = Record.read(path), read_png(path)
        return self._write(pixels_3HW, record), record

    def path(self, key: str) -> Path:
        """The file of a picture. Raises InputError if there is none, or none any more."""
        path = self.folder / key if KEY.fullmatch(key) else None
        if path is None or not path.is_file():
            raise InputError("there is no such picture here any more: draw one first, or choose another one")
        return path

    def grids(self, model: str) -> list[str]:
        """Grids up to which a variation can keep a picture; empty for a model that cannot vary."""
        generator = self.pipe(model).generator
        if not isinstance(generator, StarGenerator):
            return []
        return [f"{size}x{size}" for size in generator.tokenizer.schedule.sizes]

    def varies(self, model: str) -> bool:
        """Whether a model is a next-scale model, which can vary and inpaint; loads nothing."""
        return issubclass(self._known(model).family, StarGenerator)

    def pipe(self, model: str) -> Pipeline:
        """The model, loaded when it is first asked for."""
        source = self._known(model)
        with self._loading:
            if model not in self._pipes:
                self._pipes[model] = Pipeline(source.load(self.places[model]), source.recommended, source.model)
            return self._pipes[model]

    # ---- the parts

    def _known(self, model: str) -> Source:
        if model not in self.sources:
            raise InputError(
                f"the model is {model!r:.60}, expected one of {', '.join(self.sources)}: choose one of them"
            )
        return self.sources[model]

    def _options(self, model: str, wish: Wish, several: bool = False) -> dict[str, Any]:
        """What the wish says of drawing; of several models each takes what it has a use for."""
        options = dict(wish.more)
        if wish.guidance is not None:
            options["guidance_scale"] = wish.guidance
        heeds = getattr(self.sources[model].family, "heeds", None)
        if several and heeds is not None:
            options = {name: value for name, value in options.items() if name in heeds}
        self.pipe(model)._options(None, dict(options))  # refuses before anything is drawn
        return options

    def _frames(self, source: Source, wish: Wish, options: dict[str, Any]) -> Iterator[Frame]:
        pipe, seen = self.pipe(source.model), SimpleQueue[Any]()
        generator = pipe.generator
        scales = generator.tokenizer.schedule.count if isinstance(generator, StarGenerator) else 1
        prompt = "" if generator.conditioning == "none" else wish.prompt

        def draw() -> None:
            watch: Callback | None = (lambda k, image: seen.put((k, image))) if scales > 1 else None
            try:
                seen.put(pipe(prompt, seed=wish.seed, output_type="np", callback_on_scale=watch, **options))
            except BaseException as error:
                seen.put(error)

        self._worker.submit(draw)  # ends with its picture, whether or not somebody still looks
        while isinstance(found := seen.get(), tuple):
            yield Frame(model=source.model, image=found[1], scale=found[0] + 1, scales=scales)
        if isinstance(found, BaseException):
            raise found
        (key,) = self._keep(source, found, "sample", {})
        image = pixels_to_pil(found.pixels[0])
        yield Frame(model=source.model, image=image, scale=scales, scales=scales, key=key)

    def _keep(self, source: Source, drawn: Drawn, made_by: str, more: Mapping[str, Any]) -> list[str]:
        from star import __version__

        return [
            self._write(
                pixels_3HW,
                Record(
                    prompt=prompt,
                    seed=seed,
                    model=source.model,
                    options=to_dict(drawn.options),
                    digest=source.digest,
                    version=__version__,
                    **self.places[source.model].told(),
                    made_by=made_by,
                    more=more,
                ),
            )
            for pixels_3HW, prompt, seed in zip(drawn.pixels, drawn.prompts, drawn.seeds, strict=True)
        ]

    def _write(self, pixels_3HW: Tensor, record: Record) -> str:
        key = f"{secrets.token_hex(16)}/{slug(record.prompt)}-{record.seed}.png"
        save_png(pixels_3HW, self.folder / key, record.to_text())
        with self._keeping:
            self._made.append(key)
            old = [self._made.popleft() for _ in range(len(self._made) - KEPT)]
        for one in old:
            shutil.rmtree(self.folder / Path(one).parent, ignore_errors=True)
        return key
