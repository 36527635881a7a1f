"""Many at once: each answer is what it would be alone, or a polite refusal, and memory stays."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from star.pipeline import Pipeline
from tests.star.demo.serving import MODELS, Refused, Served, needs_gradio, serving

pytestmark = pytest.mark.slow
LIMIT, CROWD = 3, 12


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    needs_gradio()
    with serving("--queue", str(LIMIT)) as page:
        yield page


def answer(served: Served, seed: int) -> np.ndarray | str:
    """Pixels of what was drawn, or why nothing was."""
    try:
        values = served.ask("draw", [MODELS[0]], "a red circle", str(seed), "", "")
    except Refused as refusal:
        return str(refusal)
    with Image.open(io.BytesIO(served.get(values[0]["value"]["url"]))) as image:
        return np.asarray(image.convert("RGB")).copy()


def test_each_is_answered_as_alone_or_politely_refused(served: Served) -> None:
    pipe = Pipeline.from_pretrained(MODELS[0])
    wanted = {seed: np.asarray(pipe("a red circle", seed=seed).images[0]) for seed in range(CROWD)}
    assert np.array_equal(answer(served, 0), wanted[0])
    levels, counts = [], []
    for _ in range(6):
        with ThreadPoolExecutor(CROWD) as pool:
            answers = list(pool.map(lambda seed: answer(served, seed), range(CROWD)))
        refused = [one for one in answers if isinstance(one, str)]
        assert all("full" in one.lower() for one in refused), refused[:1]
        for seed, one in enumerate(answers):
            assert isinstance(one, str) or np.array_equal(one, wanted[seed]), seed
        counts.append(len(answers) - len(refused))
        levels.append(served.memory)
    assert min(counts) >= LIMIT
    assert max(counts) < CROWD  # the limit is one
    assert levels[-1] - levels[2] < 20 * 2**20, levels
