"""What the source of a dataclass says about its fields in comments."""

import ast
import inspect
import io
import textwrap
import tokenize

_read: dict[type, dict[str, str]] = {}  # sources are read slowly, and do not change


def of_fields(kind: type) -> dict[str, str]:
    """The comments of the fields of a dataclass, and of those it inherits, by name of the field.

    Behind a field, on any of its lines; where there is none, the lines of comment directly above it. Fields without a
    comment are left out, and so are all of a class whose source is not to be found.
    """
    if kind not in _read:
        _read[kind] = _in_source(kind)
    return _read[kind]


def _in_source(kind: type) -> dict[str, str]:
    """`of_fields`, read anew."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # built in, or made without a file
            continue
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        texts = {token.start[0]: token.string.lstrip("#: ") for token in tokens if token.type == tokenize.COMMENT}
        rows = source.splitlines()
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                said = [texts[row] for row in range(node.lineno, (node.end_lineno or 0) + 1) if row in texts]
                above = node.lineno - 1
                while above in texts and rows[above - 1].lstrip().startswith("#"):
                    above -= 1
                said = said or [texts[row] for row in range(above + 1, node.lineno)]
                found[node.target.id] = " ".join(said)
    return {name: text for name, text in found.items() if text}
