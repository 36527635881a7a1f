"""`star list`: every model known by name."""

import argparse

COLUMNS = ("name", "family", "resolution", "conditioning", "weights", "licence")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("list", help="every model: family, resolution, conditioning, weights, licence")
    parser.add_argument("--markdown", action="store_true", help="as the page docs/models.md")
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    if args.markdown:
        from star.commands.zoo import markdown

        print(markdown(), end="")
        return 0
    print(table())
    return 0


def table() -> str:
    """One line per model, columns aligned."""
    from star.generators import registry

    rows: list[tuple[str, ...]] = [COLUMNS]
    for name, entry in registry.entries().items():
        about = entry.about()
        size = about["resolution"]
        about["resolution"] = f"{size[0]} x {size[1]}" if size else ""
        rows.append((name, *(str(about[column] or "-") for column in COLUMNS[1:])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
