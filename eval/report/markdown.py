"""Tables as Markdown that GitHub and its like render: pipes, numbers to the right, nothing that a name could break."""

from collections.abc import Sequence

from star.eval.report.tables import Cell, Table


def to_markdown(table: Table) -> str:
    """A heading, the note, and a pipe table; bold is the best, ≈ what does not differ from it."""
    numbers = [cell.number for cell in table.rows[0]]
    lines = [
        _line(table.head),
        _line(["---:" if number else "---" for number in numbers], escape=False),
        *(_line([_in_markdown(cell) for cell in row], escape=False) for row in table.rows),
    ]
    parts = [
        f"## {escaped(table.title)}",
        f"**{table.warning}**" if table.warning else "",
        escaped(table.note),
        "\n".join(lines),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(texts: Sequence[str], escape: bool = True) -> str:
    return f"| {' | '.join(escaped(text) if escape else text for text in texts)} |"


def _in_markdown(cell: Cell) -> str:
    text = escaped(cell.text)
    if cell.mark:
        text = f"**{text}**" if cell.mark == "best" else f"≈ {text}"
    return f"{text} ({escaped(cell.detail)})" if cell.detail else text


def escaped(text: str) -> str:
    """No character of a name or a prompt may end a cell or become HTML."""
    text = " ".join(text.split())
    for character, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("*", "\\*")):
        text = text.replace(character, safe)
    return text
