"""Tables of plain text: what the package prints in columns.

What this file is not: for tables that don't fit the screen.
"""

from collections.abc import Iterable


def table(rows: list[tuple[str, ...]], right: Iterable[int] = (), rules: tuple[int, ...] = (1,)) -> str:
    """The rows as lines, their columns aligned, those in `right` to the right; a rule goes before each row in `rules`.

    >>> print(table([("name", "size"), ("conv", "12"), ("pool", "0")], right=(1,)))
    name  size
    ──────────
    conv    12
    pool     0
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines, right = [], set(right)
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    rule = "─" * max(map(len, lines))
    for place in sorted((place + len(rows) if place < 0 else place for place in rules), reverse=True):
        lines.insert(place, rule)
    return "\n".join(lines)
