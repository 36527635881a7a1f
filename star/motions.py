"""What a pipeline can show of how pictures come about and lie beside each other: a mixin of star.pipeline.Pipeline.

Morphs, the growth over the scales, attention; of GANs mixed styles and directions. Everything is given as PIL pictures,
the frames of a strip or a film in their order (star.pictures.film writes them).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from star.data.errors import InputError
from star.data.images import pixels_to_pil
from star.generators.protocol import Generator, SampleOptions

if TYPE_CHECKING:
    from star.attention_maps import AttentionMaps
    from star.generator import StarGenerator
    from star.generators.gan.editing import Directions, Method
    from star.generators.gan.generator import GanGenerator


class Motions:
    """The methods; `generator` and `options` are the pipeline's."""

    generator: Generator
    options: SampleOptions
    name: str

    def morph(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        frames: int = 8,
        guidance_scale: float | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """The way through prompts, seeds, or both: `frames` pictures for each stretch, whose ends they share.

        prompts, seeds: as many of both, or one of either for all. The ends are what a call draws of them. See
        star.morph. Raises InputError where there are fewer than two stops.
        """
        from star.morph import morph

        texts, numbers = [prompts] if isinstance(prompts, str) else list(prompts), _listed(seeds)
        count = max(len(texts), len(numbers))
        if {len(texts), len(numbers)} - {1, count}:
            raise InputError(
                f"{len(texts)} prompts and {len(numbers)} seeds were given, expected as many, or one of either: "
                "correct them"
            )
        texts, numbers = texts * (count // len(texts)), numbers * (count // len(numbers))
        chosen = self._options(guidance_scale, options)
        stops = list(zip(texts, numbers, strict=True))
        return [pixels_to_pil(pixels_3HW) for pixels_3HW in morph(self.generator, stops, chosen, frames)]

    def grow(
        self, prompt: str = "", *, seed: int = 0, guidance_scale: float | None = None, **options: Any
    ) -> list[Image.Image]:
        """What is known of a picture after each of its scales, the whole picture last. Raises InputError for GANs."""
        from star.attention_maps import growth

        star, chosen = self._next_scale("grow"), self._options(guidance_scale, options)
        grown = growth(star, star.expanded(prompt, chosen), seed=seed, options=chosen)
        return [pixels_to_pil(pixels_3HW) for pixels_3HW in grown]

    def attention(
        self, prompt: str, *, seed: int = 0, guidance_scale: float | None = None, **options: Any
    ) -> "AttentionMaps":
        """What of the prompt each place reads while the picture is drawn, per scale; see star.attention_maps.

        Raises InputError for other families than STAR.
        """
        from star.attention_maps import attention

        star, chosen = self._next_scale("attention"), self._options(guidance_scale, options)
        return attention(star, prompt, seed=seed, options=chosen)

    def mix(
        self,
        prompts: str | Sequence[str],
        *,
        coarse_seed: int,
        fine_seed: int,
        slot: int,
        **options: Any,
    ) -> Image.Image:
        """A picture of a GAN whose style slots before `slot` are one picture's, and the others another's.

        prompts: one for both, or that of the coarse and that of the fine. Raises InputError for other families.
        """
        from star.generators.gan.editing import mix

        gan, chosen = self._gan("mix"), self._options(None, options)
        texts = [prompts] * 2 if isinstance(prompts, str) else list(prompts)
        if len(texts) != 2:
            raise InputError(f"{len(texts)} prompts were given to mix, expected one or two: correct them")
        coarse_1SW, fine_1SW = (
            gan.styles([text], [seed], chosen) for text, seed in zip(texts, (coarse_seed, fine_seed), strict=True)
        )
        return pixels_to_pil(gan.pictures(mix(coarse_1SW, fine_1SW, slot))[0])

    def directions(self, prompt: str = "", *, method: "Method" = "pca", count: int = 10) -> "Directions":
        """Directions in a GAN's space of styles, found without labels; see star.generators.gan.editing.

        Raises InputError for other families.
        """
        from star.generators.gan.editing import directions

        return directions(self._gan("directions"), prompt, method=method, count=count)

    def move(
        self,
        prompt: str,
        found: "Directions",
        number: int,
        strengths: Sequence[float],
        *,
        seed: int = 0,
        slots: slice = slice(None),
        **options: Any,
    ) -> list[Image.Image]:
        """A GAN's picture moved along a direction, one for each strength in standard deviations; 0 is the picture."""
        gan, chosen = self._gan("a direction"), self._options(None, options)
        w_1SW = gan.styles([prompt], [seed], chosen)
        return [pixels_to_pil(gan.pictures(found.move(w_1SW, number, s, slots))[0]) for s in strengths]

    # ---- of the pipeline

    def _options(self, guidance_scale: float | None, options: dict[str, Any]) -> SampleOptions:
        """The recommended options with those given."""
        raise NotImplementedError

    def _next_scale(self, what: str) -> "StarGenerator":
        """The generator, where it is a STAR model."""
        raise NotImplementedError

    def _gan(self, what: str) -> "GanGenerator":
        """The generator, where it is a style-based GAN. Raises InputError that names what was asked for."""
        from star.generators.gan.generator import GanGenerator

        if not isinstance(self.generator, GanGenerator):
            raise InputError(
                f"{what} was asked of {self.name or 'a model'} that is no style-based GAN: load one, such as "
                "stylegan-t-emoji"
            )
        return self.generator


def _listed(seeds: int | Sequence[int]) -> list[int]:
    return [seeds] if isinstance(seeds, int) else list(seeds)
