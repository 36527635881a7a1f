"""Recorded passes on a CPU: fixed memory gives the codes of the usual way to the bit, whatever comes after whatever."""

import logging
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from star.class_generator import VarGenerator
from star.data.errors import InputError
from star.data.text import TextFeatures
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.model import heads
from star.next_scale import set_graphs
from star.pipeline import Pipeline
from star.sampling.chance import GivenCodes, PassShape, SampleRng
from star.sampling.graphs import Called, Graphs
from star.sampling.programs import draw_recorded
from star.sampling.sampler import draw_codes
from tests.star.sampling.emulated import OPTIONS, PROMPTS, Emulated, Side


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What numpy sorts cannot be recorded; both sides do without."""
    monkeypatch.setattr(heads, "sorts_by_numpy", lambda logits: False)


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return tiny_text_encoder().encode(PROMPTS)


def shorter(text: TextFeatures, length: int) -> TextFeatures:
    """Padded to fewer tokens."""
    return TextFeatures(text.tokens_BTD[:, :length], text.mask_BT[:, :length], text.pooled_BD)


@pytest.fixture(params=[Called, Emulated])
def graphs(request: pytest.FixtureRequest) -> Graphs:
    return Graphs(request.param())


@pytest.mark.parametrize("mode", ["per-sample", "released"])
def test_any_pass_may_follow_any_other(features: TextFeatures, graphs: Graphs, mode: str) -> None:
    side, null = Side(graphs), features[2:3]
    for _ in range(2):
        side.check(features[:2], null, [1, 2], cross_attention=mode)
        side.check(features[1:], null, [7, 1, 3], cross_attention=mode)
        side.check(features[3:], null, [5], cross_attention=mode)
        side.check(features[2:], null, [8, 9], cross_attention=mode, options=replace(OPTIONS, guidance_scale=2.5))
    assert len(graphs) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": 1.0},
        {"guidance_ramp": 0.3},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_k": 0, "top_p": 0.0, "temperature": 0.7, "temperature_decay": 0.4},
        {"top_k": 1},
    ],
)
def test_every_option_reaches_what_was_recorded(
    features: TextFeatures, graphs: Graphs, changes: dict[str, Any]
) -> None:
    side = Side(graphs)
    for strength in (4.0, 6.0):
        for top_p in (0.9, 0.5):
            options = replace(replace(OPTIONS, guidance_scale=strength, top_p=top_p), **changes)
            side.check(features[:2], features[2:3], [3, 4], options=options)
    assert len(graphs) == 1


def test_strengths_and_shares_are_no_part_of_the_key_but_what_they_switch_off_is(features: TextFeatures) -> None:
    graphs = Graphs(Called())
    side = Side(graphs)
    for options in (
        OPTIONS,
        replace(OPTIONS, guidance_scale=9.0, top_p=0.2, temperature=2.0),
        replace(OPTIONS, top_p=1.0),
        replace(OPTIONS, top_k=3),
        replace(OPTIONS, guidance_scale=1.0),
        replace(OPTIONS, guidance_ramp=0.0),  # then the coarsest scale is guided, too
    ):
        side.check(features[:1], features[2:3], [0], options=options)
    assert len(graphs) == 5


@pytest.mark.parametrize("last", [1, 2, 4])
def test_scales_without_guidance_carry_half_of_the_rows(features: TextFeatures, graphs: Graphs, last: int) -> None:
    side = Side(graphs)
    side.check(features[:3], features[2:3], [1, 2, 3], unguided_last=last, cross_attention="released")
    side.check(features[1:], features[2:3], [1, 2, 3], unguided_last=last, cross_attention="released")


def test_texts_of_other_lengths_have_programs_of_their_own(features: TextFeatures, graphs: Graphs) -> None:
    side = Side(graphs)
    for length in (features.tokens_BTD.shape[1], 5, 3, 5):
        text = shorter(features, length)
        side.check(text[:2], text[2:3], [1, 2])
    assert len(graphs) == 3


def test_rectangles_and_given_codes(features: TextFeatures, graphs: Graphs) -> None:
    side = Side(graphs)
    wide = side.transformer.schedule.at(3, 5)
    side.check(features[:2], features[2:3], [1, 2], schedule=wide)
    for seed in (0, 1):
        random = torch.Generator().manual_seed(seed)
        lengths = side.transformer.schedule.lengths
        given = GivenCodes(
            [torch.randint(32, (2, length), generator=random) for length in lengths],
            [torch.rand(2, length, generator=random) < 0.5 for length in lengths],
        )
        side.check(features[:2], features[2:3], [1, 2], given=given)


@pytest.mark.parametrize("modulation", ["adaln", "shared-adaln"])
def test_classes(graphs: Graphs, modulation: str) -> None:
    side = Side(
        graphs, conditioning="class", cross_attention=False, classes=5, modulation=modulation, positions="absolute"
    )
    for labels in ([0, 4], [3, 5], [1, 1]):
        side.check(torch.tensor(labels), torch.tensor([5]), [1, 2], unguided_last=1)


def test_bits(features: TextFeatures, graphs: Graphs) -> None:
    side = Side(graphs, bits=True)
    for top_p in (0.9, 0.6):
        side.check(features[:2], features[2:3], [1, 2], options=SampleOptions(top_p=top_p))


def test_weights_may_change_but_not_move(features: TextFeatures) -> None:
    graphs, network = Graphs(Emulated()), None
    side = Side(graphs)
    network = (side.transformer, side.quantizer)
    graphs.check(network)
    side.check(features[:1], features[2:3], [1])
    with torch.no_grad():
        for parameter in side.transformer.parameters():
            parameter.mul_(1.1)
    graphs.check(network)
    assert len(graphs) == 1
    side.check(features[:1], features[2:3], [1])
    side.transformer.double()
    graphs.check(network)
    assert len(graphs) == 0


def test_only_the_last_used_are_kept(features: TextFeatures) -> None:
    graphs = Graphs(Called(), most=2)
    side = Side(graphs)
    for count in (1, 2, 3):
        side.check(features[:count], features[2:3], list(range(count)))
    assert len(graphs) == 2

    class Small(Called):
        bytes = 4 * 2 * 2 * 30 * 32 * 2 * 3  # three times what a picture of 30 tokens holds, guided, in float32

    graphs = Graphs(Small(), share=1.0)
    side = Side(graphs)
    for count, kept in ((1, 1), (2, 2), (1, 2)):
        side.check(features[:count], features[2:3], list(range(count)))
        assert len(graphs) == kept
    side.check(features[:4], features[2:3], [0, 1, 2, 3])
    assert len(graphs) == 2  # one that does not fit pushes nobody out


def test_what_cannot_be_recorded_is_told_once(features: TextFeatures, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Called):
        tries = 0

        def record(self, steps: Any) -> Any:
            Broken.tries += 1
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = Graphs(Broken())
    side = Side(graphs)
    with caplog.at_level(logging.INFO):
        side.check(features[:1], features[2:3], [1])
        side.check(features[:1], features[2:3], [2])
    assert Broken.tries == 1
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graphs are used for a batch of this shape: operation not permitted when stream is capturing"
    ]


def test_whoever_looks_in_is_served_in_the_usual_way(features: TextFeatures, caplog: pytest.LogCaptureFixture) -> None:
    graphs, seen = Graphs(Called()), list[int]()
    side = Side(graphs)
    with caplog.at_level(logging.INFO):
        side.check(features[:1], features[2:3], [1], watch=lambda k, logits, codes: seen.append(k))
        assert seen == [0, 1, 2, 3] * 4
        handle = side.transformer.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(9))
        side.check(features[:1], features[2:3], [1])
        handle.remove()
    assert len(graphs) == 0
    assert seen.count(9) == 16
    assert len(caplog.records) == 2
    side.check(features[:1], features[2:3], [1])
    assert len(graphs) == 1


def test_threads_take_turns(features: TextFeatures) -> None:
    graphs = Graphs(Emulated(), after=0)
    side, null = Side(graphs), features[2:3]
    expected = [
        draw_codes(side.transformer, side.quantizer, features[i : i + 1], null, seeds=[i], options=OPTIONS)[1]
        for i in range(4)
    ]
    found: dict[int, bool] = {}

    def work(i: int) -> None:
        for _ in range(5):
            _, latent = draw_codes(
                side.transformer, side.quantizer, features[i : i + 1], null, seeds=[i], options=OPTIONS, graphs=graphs
            )
            found[i] = found.get(i, True) and torch.equal(latent, expected[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


@pytest.mark.parametrize("family", [StarGenerator, VarGenerator])
def test_a_generator_draws_and_decodes_by_them(family: type[StarGenerator | VarGenerator]) -> None:
    prompts = ["a red circle"] if family is StarGenerator else ["3"]
    usual, recorded = family.for_test(), family.for_test()
    assert recorded.recorded() is None  # of itself only on a GPU
    recorder = Emulated()
    recorded._recorded = Graphs(recorder)
    for seed in (1, 1, 2, 3):
        expected = usual.generate(prompts, seeds=[seed], options=OPTIONS)
        assert torch.equal(recorded.generate(prompts, seeds=[seed], options=OPTIONS), expected)
    assert recorder.runs == 6  # pass and decoder, from the second picture on
    assert len(recorder.tapes) == 1 + recorded.transformer.schedule.count + 1
    recorded.graphs = "off"
    assert recorded.recorded() is None


def test_a_picture_that_is_not_finite_is_told() -> None:
    generator = StarGenerator.for_test()
    generator._recorded = Graphs(Called(), after=0)
    with torch.no_grad():
        next(generator.tokenizer.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        generator.generate(["a"], seeds=[0])


def test_the_mode_is_asked_for_where_a_model_is_loaded() -> None:
    pipe = Pipeline.from_pretrained("star-test", graphs="off")
    assert isinstance(pipe.generator, StarGenerator)
    assert pipe.generator.graphs == "off"
    assert pipe.to("cpu").generator.graphs == "off"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="graphs is 'on', expected one of auto, off"):
        set_graphs(pipe.generator, "on")  # type: ignore[arg-type]
    assert Pipeline.from_pretrained("stylenat-test", graphs="off").generator is not None


def test_a_program_keeps_no_seed_of_the_first_picture(features: TextFeatures) -> None:
    """Its rng is an example: all numbers come with the inputs."""
    graphs, side = Graphs(Called(), after=0), Side(Graphs(Called()))
    shape = PassShape.of(OPTIONS, side.transformer.schedule, 1, [0.0] * 4, released=False)
    packed = torch.rand(3 * 4 + 1 + 30, dtype=torch.float64)
    rng = SampleRng([5], OPTIONS)
    found = draw_recorded(graphs, side.transformer, side.quantizer, shape, features[:1], rng, packed, None)
    assert found is not None
    ((recorded,),) = [list(graphs._recorded.values())]
    assert not recorded.program.rng.seeds  # type: ignore[attr-defined]
