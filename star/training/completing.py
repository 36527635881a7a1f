"""What fine-tuning does for a completion (star.completion): whom it is heard for, and what was learnt."""

from collections.abc import Sequence

from torch import Tensor

from star.clip.wordings import Expansion
from star.completion import Completion
from star.data.errors import InputError
from star.data.loader.batch import Batch
from star.generator import StarGenerator
from star.model.transformer import NextScaleTransformer
from star.training.lora import DOWN, UP


def completed_by(generator: StarGenerator, batches: Sequence[Batch]) -> Expansion:
    """The model's wordings, with the subjects and styles of the pictures, and no others, as completed.

    Raises InputError for a model without wordings, or whose wordings know none of these.
    """
    if generator.expansion is None:
        raise InputError("a completion was asked of a model without wordings: make some by `star data wordings`")
    captions = [several[0] for batch in batches for several in batch.captions]
    completed = generator.expansion.with_completed(captions, alone=True)
    if not any(map(completed.completes, captions)):
        raise InputError(
            f"none of {len(captions)} captions, the first {captions[0]!r}, names a subject and a style that the "
            "model's wordings know: give pictures with such captions, as `star data complete` makes them"
        )
    return completed


def heard_prompts(batch: Batch, completed: Expansion | None) -> list[str]:
    """A batch's prompts, each that will not hear the completion replaced by the picture's first caption that will.

    What is learnt under other captions, as lists of tags, would never be drawn. None: as they are.
    """
    if completed is None:
        return batch.prompts
    chosen = []
    for prompt, captions in zip(batch.prompts, batch.captions, strict=True):
        chosen.append(next(filter(completed.completes, (prompt, *captions)), prompt))
    return chosen


def start_from(transformer: NextScaleTransformer, completion: Completion, rank: int) -> None:
    """Gives the adapters around a network's layers the factors of a completion, to be trained on.

    Raises InputError for another rank, or layers that have no adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    names = {f"{name}{end}" for name in completion.factors for end in (DOWN, UP)}
    if rank != completion.rank or names != set(get_peft_model_state_dict(transformer)):
        raise InputError(
            f"an adapter of rank {rank} was asked of a model whose completion has rank {completion.rank} in "
            f"{len(completion.factors)} layers, expected the same, since that is trained on: give its rank"
        )
    tensors: dict[str, Tensor] = {}
    for name, (down_rI, up_Or) in completion.factors.items():
        tensors |= {f"{name}{DOWN}": down_rI, f"{name}{UP}": up_Or}
    set_peft_model_state_dict(transformer, tensors)


def factors_of(transformer: NextScaleTransformer) -> dict[str, tuple[Tensor, Tensor]]:
    """Of a trained adapter, for each layer's name lora_A (r, in) and lora_B (out, r)."""
    from peft import get_peft_model_state_dict

    tensors = {name: tensor.detach().cpu() for name, tensor in get_peft_model_state_dict(transformer).items()}
    names = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    return {name: (tensors[f"{name}{DOWN}"], tensors[f"{name}{UP}"]) for name in names}
