"""`star attend`: where a picture reads a word of its prompt, scale by scale."""

import argparse

from star.commands import pictures
from star.terminal import as_text


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the command's arguments."""
    parser = pictures.add_parser(
        commands,
        "attend",
        "where a picture reads a word of its prompt, per scale (STAR)",
        "Draws a picture and lays the attention that a word gets over it, after each scale: yellow where it is read "
        "most, dark where least, each scale by itself; prints the largest share of each. A row for each word, below "
        "the row of the picture as it grows.",
    )
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--word", nargs="+", metavar="WORD", required=True, help="of the prompt; one or several")
    pictures.add_seed(parser)
    pictures.add_output(parser, films=False)
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Draws the picture and writes the sheet."""
    pictures.check(args, films=False)
    prompt = as_text(args.prompt)
    opened = pictures.open_pipeline(args)
    maps = opened.pipe.attention(prompt, seed=args.seed)
    per_word = {word: maps.of_word(as_text(word)) for word in args.word}
    from star.data.images import pixels_to_pil
    from star.pictures.heat import overlaid

    frames = [pixels_to_pil(pixels_3HW) for pixels_3HW in maps.pixels]
    for word, shares in per_word.items():
        frames += [overlaid(pixels_3HW, share_hw) for pixels_3HW, share_hw in zip(maps.pixels, shares, strict=True)]
        told = ", ".join(f"{h}x{w} {float(share.max()):.2f}" for (h, w), share in zip(maps.grids, shares, strict=True))
        print(f"{word}: at most {told}")
    text = opened.text("attend", prompt, args.seed, words=args.word)
    pictures.write_frames(args, frames, "attention", text, columns=len(maps.pixels), kinds=(".png",))
    return 0
