"""Colors: one per method in all figures, and none twice in one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb

__all__ = ["color", "distinct_colors"]

_COLORS = {
    "dense": "#222222", "random": "#8c8c8c", "l1": "#1f77b4", "greg": "#ff7f0e",
    "tpp": "#2ca02c", "scratch": "#9467bd", "oracle": "#d62728", "l1 + orthp": "#d62728",
    "l1 + recalibrate": "#17becf", "slimming": "#bcbd22", "ucs": "#7f7f4f", "rni": "#e377c2",
    "rni, b = 0": "#9467bd", "bounded": "#8c8c8c", "polarization": "#8c564b",
}  # fmt: skip
_SPARE = ("#f77189", "#d58c32", "#a4a031", "#50b131", "#34ae91", "#37abb5", "#3ba3ec", "#bb83f4", "#f564d4")


def color(name: str) -> str:
    """Return the color of a method or network: the longest known method in its name decides, else a spare one."""
    low = name.lower()
    known = [method for method in _COLORS if method in low]
    if known:
        return _COLORS[max(known, key=lambda method: (low.find(method) == 0, len(method)))]
    return _SPARE[sum(map(ord, low)) % len(_SPARE)]


def distinct_colors(names: Iterable[object], *, dashed: bool = False) -> dict[str, str]:
    """Return {name: color}, no color twice: names that `color` gives the same one get shades of it.

    Args:
        names: of all that is drawn in one figure; known methods keep their own color.
        dashed: whether what is repaired ("L1 + oracle") is drawn dashed; it then has the color of what it was ("L1").
    """
    texts = list(dict.fromkeys(map(str, names)))
    chosen: dict[str, str] = {}
    used: set[tuple[str, bool]] = set()
    for name in sorted(texts, key=lambda name: ("+" in name, name.lower() not in _COLORS)):
        wanted, style, plain = color(name), dashed and "+" in name, name.split(" + ")[0]
        if style and (color(plain) == wanted or wanted in _SPARE):
            wanted = chosen.get(plain, wanted)
        chosen[name] = next(shade for shade in _shades(wanted) if (shade, style) not in used)
        used.add((chosen[name], style))
    return {name: chosen[name] for name in texts}


def _shades(base: str) -> Iterator[str]:
    """Yield a color, then others: lighter and darker ones, or the next spare ones; then hues all around, without end."""
    yield base
    if base in _SPARE:
        start = _SPARE.index(base)
        yield from (*_SPARE[start + 1 :], *_SPARE[:start])
    for white, share in ((1.0, 0.5), (0.0, 0.45), (1.0, 0.75), (0.0, 0.7)):
        yield to_hex(tuple((1 - share) * part + share * white for part in to_rgb(base)))  # type: ignore[arg-type]
    for step in itertools.count():
        yield to_hex(tuple(hsv_to_rgb(((0.618 * step) % 1, 0.55 + 0.4 * (step % 2), 0.85 - 0.25 * (step % 3) / 2))))
