"""`star compare`: records of `star eval` side by side, as one HTML page and one Markdown table."""

import argparse

from star.data.errors import InputError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "compare",
        help="put records side by side: a page with tables, plots and galleries",
        description="Reads records of `star eval` and writes comparison.html, one page that needs nothing beside it, "
        "and comparison.md with the same figures. Records that were made by different protocols are refused: their "
        "figures do not compare.",
    )
    parser.add_argument("records", nargs="+", metavar="RECORD", help="JSON of `star eval`, in the order of columns")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the two files")
    parser.add_argument("--benchmark", metavar="DIR", help="folder or zip with the real pictures, for the gallery")
    parser.add_argument(
        "--rows", type=int, default=24, metavar="N", help="prompts of the gallery (default: %(default)s)"
    )
    parser.add_argument(
        "--mix-protocols", action="store_true", help="compare what does not compare, and mark every table"
    )
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Reads, checks, writes, prints the paths."""
    if args.rows < 0:
        raise InputError(f"--rows is {args.rows}, expected at least 0: correct it")
    from star.eval.report.comparison import gather
    from star.eval.report.report import write_report

    comparison = gather(args.records, args.mix_protocols)
    for path in write_report(comparison, args.out, args.rows, args.benchmark):
        print(path)
    return 0
