"""`star eval`: how faithful a model is to the prompts of a benchmark: one JSON record, its pictures beside it."""

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data.errors import InputError

CANDIDATES = 20
PROTOCOL = "prompt-rank-20"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "eval",
        help="score a model on the prompts of a benchmark",
        description="Draws the prompts of a folder in the MJHQ-30k layout, one picture each, and writes a JSON record: "
        f"how often a CLIP ranks the true prompt first among {CANDIDATES} (protocol {PROTOCOL}), for the drawn and for "
        "the real pictures. The pictures and a sheet of real and drawn ones stand beside the record. A run that was "
        "stopped continues where it was.",
    )
    parser.add_argument("model", metavar="MODEL", help="name, folder or hub id")
    parser.add_argument("--benchmark", required=True, metavar="DIR", help="folder with meta_data.json")
    parser.add_argument("--out", required=True, metavar="RECORD", help="the JSON file to write")
    parser.add_argument("--pictures", type=int, default=256, metavar="N", help="prompts, evenly spread (default: 256)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all pictures (default: %(default)s)")
    parser.add_argument("--guidance", type=float, help="how much further than the prompt alone to go; 0 is neutral")
    parser.add_argument("--scorer", metavar="CLIP", help="folder or hub id (default: the clip-emoji that ships)")
    parser.add_argument("--sheet", type=int, default=32, metavar="N", help="pictures on the sheet (default: 32)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at once (default: %(default)s)")
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Draws, scores, writes."""
    if args.pictures < CANDIDATES or args.batch < 1 or args.seed < 0 or args.sheet < 1:
        raise InputError(
            f"--pictures {args.pictures}, --batch {args.batch}, --seed {args.seed}, --sheet {args.sheet} given; "
            f"expected at least {CANDIDATES}, 1, 0 and 1"
        )
    import torch

    from data.images import read_png, save_png
    from eval.alignment import ClipScorer
    from eval.layout import read_layout, spread
    from generators import registry

    items = spread(read_layout(args.benchmark), args.pictures)
    options = registry.recommended(args.model)
    if args.guidance is not None:
        options = replace(options, guidance=args.guidance)
    scorer = ClipScorer(args.scorer or _shipped_clip())
    generator = registry.build(args.model)
    record = Path(args.out)
    folder = record.with_suffix("")
    asked = {"model": args.model, "seed": args.seed, "options": asdict(options)}
    _claim(folder, asked)
    drawn = _draw(generator, items, options, args, folder)
    real = [read_png(item.picture) for item in items]
    prompts = [item.prompt for item in items]
    H, W = generator.resolution
    resized = torch.stack([_resized(pixels, (H, W)) for pixels in real])
    result: dict[str, Any] = {
        "protocol": PROTOCOL,
        **asked,
        "benchmark": Path(args.benchmark).name,
        "pictures": len(items),
        "scorer": scorer.digest,
        "drawn": _scores(scorer, torch.stack(drawn), prompts),
        "real": _scores(scorer, resized, prompts),
    }
    save_png(_sheet(items, resized, drawn, args.sheet), folder / "sheet.png")
    record.write_text(json.dumps(result, indent=1) + "\n")
    for name in ("drawn", "real"):
        scores = result[name]
        low, high = scores["interval"]
        print(f"{name}: true prompt first {scores['first']:.1%} ({low:.1%} to {high:.1%}), CLIP {scores['cosine']:.3f}")
    print(f"{record}\n{folder / 'sheet.png'}")
    return 0


def seed_of(key: str, seed: int) -> int:
    """The seed of an item's picture: the same for every model, and whatever else is drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:6])


def _shipped_clip() -> Path:
    from importlib.util import find_spec

    spec = find_spec("star")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "weights" / "clip-emoji"


def _claim(folder: Path, asked: dict[str, Any]) -> None:
    """Pictures of another model, seed or option are never mixed with new ones."""
    manifest = folder / "manifest.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if manifest.exists() and json.loads(manifest.read_text()) != asked:
            raise InputError(f"{folder} holds pictures made with other options; give another --out, or remove it")
        manifest.write_text(json.dumps(asked, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); give another --out") from error


def _draw(generator: Any, items: Any, options: Any, args: argparse.Namespace, folder: Path) -> list[Any]:
    """One picture per item; those already on disk are read back."""
    from data.images import read_png, save_png
    from data.progress import Progress

    paths = [folder / f"{item.key}.png" for item in items]
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    with Progress(len(items), unit="pictures", start=len(items) - len(missing)) as progress:
        for first in range(0, len(missing), args.batch):
            part = missing[first : first + args.batch]
            pixels_B3HW = generator.generate(
                [items[index].prompt for index in part],
                seeds=[seed_of(items[index].key, args.seed) for index in part],
                options=options,
            )
            for index, pixels_3HW in zip(part, pixels_B3HW, strict=True):
                save_png(pixels_3HW, paths[index], {"prompt": items[index].prompt})
            progress.update(len(part))
    return [read_png(path) for path in paths]


def _scores(scorer: Any, pixels_B3HW: Any, prompts: list[str]) -> dict[str, Any]:
    from eval.alignment import bootstrap_interval, prompt_ranks

    image_BD, text_BD = scorer.images(pixels_B3HW), scorer.texts(prompts)
    first_B = (prompt_ranks(image_BD, text_BD, prompts, CANDIDATES) == 0).double()
    return {
        "first": float(first_B.mean()),
        "interval": bootstrap_interval(first_B),
        "cosine": float((image_BD * text_BD).sum(dim=1).mean()),
    }


def _resized(pixels_3HW: Any, size: tuple[int, int]) -> Any:
    from data.images import pil_to_pixels, pixels_to_pil, resize

    return pil_to_pixels(resize(pixels_to_pil(pixels_3HW), size))


def _sheet(items: Any, real: Any, drawn: Any, count: int) -> Any:
    """Real and drawn pictures side by side, four pairs in a row, each pair under its prompt."""
    from data.images import labelled_grid
    from eval.layout import spread

    chosen = spread(range(len(items)), min(count, len(items)))
    rows, labels = [], []
    for first in range(0, len(chosen), 2):
        part = chosen[first : first + 2]
        rows.append([picture for index in part for picture in (real[index], drawn[index])])
        labels.append(" | ".join(items[index].prompt for index in part))
    return labelled_grid(rows, labels, (["real", "drawn"] * 2)[: len(rows[0])])
