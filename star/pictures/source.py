"""A model as far as it is known before its weights are read: enough to refuse what it cannot draw."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from star.data.errors import InputError
from star.pictures.record import digest_of

if TYPE_CHECKING:
    from star.generators.placement import Placement
    from star.generators.protocol import Family, Generator, SampleOptions
    from star.training.lora import Adapter


@dataclass(frozen=True, slots=True)
class Source:
    """model: as it was given. family: the class that reads it. conditioning: "" where only the weights' reader knows.

    recommended: the options that its directory recommends. digest: see `record.digest_of`; "" for a test network.
    """

    model: str
    adapter: str
    family: "type[Family]"
    conditioning: str
    recommended: "SampleOptions"
    digest: str

    @classmethod
    def find(cls, model: str, adapter: str = "") -> "Source":
        """Reads the description of a model. Raises InputError if there is none, or an adapter is not its own."""
        from star.generators import registry

        family, recommended = registry.family_of(model), registry.recommended(model)
        if registry.is_test(model):
            known = getattr(family, "conditioning", "")  # a property where it is the network's
            return cls(model, adapter, family, known if isinstance(known, str) else "", recommended, "")
        from star.generators.pretrained import ModelDirectory

        directory = ModelDirectory.read(registry.locate(model))
        if adapter:
            _adapter(adapter, family, model).check_base(directory)
        conditioning = str(directory.about.get("conditioning", ""))
        return cls(model, adapter, family, conditioning, recommended, digest_of(directory, adapter))

    def refuse(self, options: Collection[str], *, negative_prompt: bool = False) -> None:
        """Raises InputError for options (names) that the family has no use for, and a negative prompt likewise."""
        from star.generators.protocol import check_options

        check_options(self.family, options)
        if negative_prompt:
            from star.generator import StarGenerator

            if not issubclass(self.family, StarGenerator):
                raise InputError(
                    f"a negative prompt was given to {self.model}, which has no use for one, expected a STAR model: "
                    "leave it out"
                )

    def load(self, place: "Placement") -> "Generator":
        """The generator, its weights read and, where there is an adapter, changed by it."""
        from star.generators import registry

        generator = registry.build(self.model, device=place.device, dtype=place.dtype)
        if self.adapter:
            _adapter(self.adapter, type(generator), self.model).merge_into(generator.transformer)  # type: ignore[attr-defined]
        return generator


def _adapter(path: str, family: type, model: str) -> "Adapter":
    from star.generator import StarGenerator
    from star.training.lora import Adapter

    if not issubclass(family, StarGenerator):
        raise InputError(f"--adapter was given for {model}, expected a STAR model: leave it out")
    return Adapter.read(path)
