"""`star train NETWORK`: a preset, changed field by field on the command line, handed to its trainer."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from star.commands.pipes import add_allow_pipe, minding_pipes
from star.data.disk import check_writable
from star.data.errors import InputError
from star.generators import registry
from star.generators.registration import load

# What can be trained: where its presets and its trainer are, and in one phrase what it is. Families of other packages
# are found by their entry points.
TRAINERS = {
    "tokenizer": (
        "star.tokenizer.presets:PRESETS",
        "star.tokenizer.train:train",
        "pictures to codes of every scale and back",
    ),
    "star": (
        "star.training.presets:PRESETS",
        "star.training.stages:train",
        "the next-scale transformer, on a trained tokenizer, or the refiner behind one",
    ),
    "clip": (
        "star.clip.config:CLIP_PRESETS",
        "star.clip.train:train",
        "a small CLIP, whose text tower reads the prompts",
    ),
    **{name: (gan.presets, gan.trainer, gan.summary) for name, gan in registry.gans().items()},
    "judge": (
        "star.eval.extractors.train_classifier:PRESETS",
        "star.eval.extractors.train_classifier:train",
        "a classifier, whose features the metrics compare",
    ),
    "restyle": (
        "star.restyle.train:PRESETS",
        "star.restyle.train:train",
        "a network that redraws pictures of one style in another",
    ),
}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("train", help="train a network on shards")
    networks = parser.add_subparsers(metavar="NETWORK", title="networks", required=True)
    phrases = {name: phrase for name, (_, _, phrase) in TRAINERS.items()}
    phrases |= {name: f"a {name}" for name in registry.others() if name not in TRAINERS}
    for name, phrase in phrases.items():
        network = networks.add_parser(
            name,
            help=phrase,
            add_help=False,  # with a preset, help goes on to its fields
            description=f"Trains {phrase}. Every field of the preset can be changed by its dotted name, as in "
            "--run.steps=2000; a preset together with --help lists them.",
        )
        network.add_argument("-h", "--help", action="store_true", help="show this, and the fields of a given preset")
        network.add_argument("--preset", metavar="P", help="a recipe; an unknown one is answered with the list")
        network.add_argument("--data", nargs="+", metavar="DATA", help="shards, or folders of captioned pictures")
        network.add_argument("--out", metavar="RUN", help=f"folder of the run (default: runs/{name})")
        network.add_argument("--resume", action="store_true", help="continue the run in that folder")
        network.add_argument("--show", action="store_true", help="print the config as JSON and train nothing")
        add_allow_pipe(network)
        network.set_defaults(work=minding_pipes(work), network=name, overrides=[], parser=network)


def work(args: argparse.Namespace) -> int:
    if args.help:
        args.parser.print_help()
        if args.preset is None:
            return 0
    if args.preset is None:
        raise InputError(f"no preset was given, expected --preset with one of {', '.join(presets(args.network))}")
    config = configure(args.network, args.preset, ["--help"] if args.help else args.overrides)
    if args.show:
        from star.generators.config import to_dict

        print(json.dumps(to_dict(config), indent=1))
        return 0
    if not args.data:
        raise InputError(
            "no data were given, expected --data with shards or folders of pictures; `star data synthetic` makes some"
        )
    out = args.out or f"runs/{args.network}"
    check_writable(out)
    from star.data.packing.cache import as_shards

    train = load(trainer(args.network)[1])
    data = as_shards(args.data, registry.home() / "shards", say=lambda text: print(f"star: {text}", file=sys.stderr))
    print(train(config, data=data, out=out, resume=args.resume))
    return 0


def presets(network: str) -> Mapping[str, Any]:
    """The recipes of a network by name."""
    found: Mapping[str, Any] = load(trainer(network)[0])
    return found


def trainer(network: str) -> tuple[str, str, str]:
    """Where the presets and the trainer of a network are, and in one phrase what it is.

    Raises InputError for a family that brings no presets.
    """
    if network in TRAINERS:
        return TRAINERS[network]
    family = registry.registration(network)
    if not family.presets:
        raise InputError(
            f"the package of {network} registers a class alone, expected a Registration with presets: train it with "
            "its own program, or register it as docs/extending.md shows"
        )
    return family.presets, family.trainer, family.summary


def configure(network: str, preset: str, overrides: Sequence[str] = ()) -> Any:
    """A preset with fields changed by `--dotted.name=value`.

    Raises InputError for an unknown preset or a number out of its range; SystemExit with code 2, after one message, for
    an unknown field, a wrong type or another impossible value.
    """
    known = presets(network)
    if preset not in known:
        raise InputError(f"there is no preset {preset!r} of {network}, expected one of {', '.join(known)}: choose one")
    from star.commands import fields
    from star.generators.config import to_dict
    from star.generators.renamed import refuse_old_fields
    from star.generators.training import ranges

    refuse_old_fields(overrides)
    config = known[preset]
    assert dataclasses.is_dataclass(config)
    chosen = fields.change(config, overrides, prog=f"star train {network} --preset {preset}")
    ranges.check(to_dict(chosen))
    return chosen
