"""`star finetune`: a model and some captioned pictures to an adapter, or to a model of its own."""

import argparse

from star.commands.pipes import add_allow_pipe, minding_pipes
from star.data.disk import check_writable

STEPS = 400
MOST_STEPS = 10**6  # where the clock ends it


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "finetune",
        help="teach a STAR model some pictures of yours",
        description="Trains a STAR model further on 20 to 10,000 captioned pictures and prints the folder of the "
        "result: with --lora a small adapter for `star sample --adapter`, without it a whole model. Losses and drawn "
        "pictures of before and after lie beside it. How long it takes on this machine is said before it begins.",
    )
    parser.add_argument("model", metavar="MODEL", help="name, folder or hub id of a STAR model")
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="DATA",
        help="folders, tables or data sets of captioned pictures, or shards",
    )
    parser.add_argument("--out", default="runs/finetune", metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train an adapter (default: all weights)")
    parser.add_argument(
        "--completion",
        action="store_true",
        help="with --lora: keep the adapter in the model, heard only where a prompt asks for the subject and style of "
        "one of these pictures, as `star data complete` makes them; all other pictures stay as they are",
    )
    parser.add_argument("--steps", type=int, metavar="N", help=f"(default: {STEPS}, or as many as --minutes allows)")
    parser.add_argument("--minutes", type=float, default=0.0, metavar="M", help="of training; schedules end with it")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.0, help="(default: 1e-3 for an adapter, 1e-4 for all weights)")
    parser.add_argument(
        "--keep-last-scale",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of the finest scale's tokens, that a step computes (default: all)",
    )
    parser.add_argument(
        "--coarse-scales", type=int, default=0, metavar="N", help="all that the share --coarse-steps of them computes"
    )
    parser.add_argument("--coarse-steps", type=float, default=0.0, metavar="SHARE", help="(default: none)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="(default: %(default)s)")
    parser.add_argument("--validation", nargs="+", default=(), metavar="DATA", help="pictures to be measured only")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder")
    add_allow_pipe(parser)
    parser.set_defaults(work=minding_pipes(work))


def work(args: argparse.Namespace) -> int:
    """Trains and prints the folder."""
    from star.generators.config import to_dict
    from star.generators.training import ranges
    from star.generators.training.run import RunConfig
    from star.training.finetune import FinetuneConfig, finetune

    run = RunConfig(
        steps=args.steps if args.steps is not None else MOST_STEPS if args.minutes else STEPS,
        minutes=args.minutes,
        batch_size=args.batch,
        seed=args.seed,
        precision=args.precision,
        sample_every=0,
        checkpoint_every=200,
        log_every=20,
        keep=1,
        trackers=(),
    )
    config = FinetuneConfig(
        run=run,
        lora=args.lora,
        lr=args.lr,
        keep_last_scale=args.keep_last_scale,
        coarse_scales=args.coarse_scales,
        coarse_steps=args.coarse_steps,
        completion=args.completion,
    )
    check_writable(args.out)
    ranges.check(to_dict(config))  # before the model is loaded
    print(finetune(args.model, config, data=args.data, out=args.out, validation=args.validation, resume=args.resume))
    return 0
