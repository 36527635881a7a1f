"""Does a classifier name the subject of a generated picture right: first of all subjects, or among the first five?

The truth is the benchmark's own `subject` of each entry. Where a benchmark names none at all, the classifier may know
from the captions that it was trained on which subject a prompt asks for; the record then says so. A picture whose
subject is unknown, or none that the classifier distinguishes, is not counted; the estimate says how many were.

N pictures, D feature width, S subjects of the classifier, n pictures at a time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from star.eval.metrics.metric import Inputs

HEAD = "subject"
ROWS = 2048  # pictures at a time: their logits for 2,000 subjects take 16 MB
STRANGE = "this network knows none of the subjects that the benchmark names"
UNKNOWN = "the benchmark names no subjects, and this network cannot tell them from its prompts"
READ = "the benchmark names no subjects, so they were read from its prompts, by the captions this network learnt from"


def named_among(count: int) -> Callable[[Inputs], Tensor | None]:
    """The function of a metric: 1 where the true subject is among the first `count`, else 0, (N,).

    NaN for a picture whose subject is not known; None where none is.
    """

    def function(inputs: Inputs) -> Tensor | None:
        ranks_N, note = inputs.once(_ranks)
        if note:
            inputs.notes.append(note)
        return None if ranks_N is None else (ranks_N < count).float().where(ranks_N >= 0, torch.nan)

    return function


def _ranks(inputs: Inputs) -> tuple[Tensor | None, str]:
    """How many subjects a picture is rather taken for than its own, int64 (N,), -1 where that is not known; and a note.

    None where no picture's is known. A tie counts against the picture.
    """
    assert inputs.labels is not None
    places = {label: place for place, label in enumerate(inputs.labels.labels(HEAD))}
    named = any(inputs.subjects)
    subjects = inputs.subjects if named else inputs.labels.labels_meant(inputs.prompts, HEAD)
    place_N = torch.tensor([places.get(subject, -1) for subject in subjects], dtype=torch.int64)
    if not bool((place_N >= 0).any()):
        return None, STRANGE if named else UNKNOWN
    parts = []
    for top in range(0, len(place_N), ROWS):
        place_n = place_N[top : top + ROWS]
        logits_nS = inputs.labels.label_logits(inputs.generated[top : top + ROWS], HEAD)
        mine_n1 = logits_nS.gather(1, place_n.clamp(min=0)[:, None])
        parts.append(((logits_nS >= mine_n1).sum(dim=1) - 1).where(place_n >= 0, -1))
    return torch.cat(parts), "" if named else READ
