"""Charts as inline SVG: colours are the page's, text is escaped, nothing needs a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from fedgen.evaluation.plots import KINDS

WIDTH, HEIGHT = 440, 250  # of a chart; text of 12 is legible where a phone shows it at 320
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 38
COLOURS = 8  # that the style sheet has; more lines than that are summed up
SIDE = 150  # of a class in the picture of samples

Points = Sequence[tuple[float, float]]
Place = Callable[[float, float], tuple[float, float]]
"""Where a point of the data is in a chart."""


def line_chart(
    title: str, series: Mapping[str, Points], y_label: str, limits: tuple[float, float] | None = None
) -> Markup:
    """Return a chart of lines over rounds.

    Parameters
    ----------
    title : str
        For those who cannot see it.
    series : Mapping
        Points (round, value) by name; what is not finite is left out.
    y_label : str
    limits : tuple[float, float], optional
        Of the y axis; by default what the values need.
    """
    lines = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    everything = [point for points in lines.values() for point in points]
    if not everything:
        return Markup("<p>No figures.</p>")
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    x_ticks = _ticks(min(xs), max(xs), 8, whole=True)
    y_ticks = _ticks(*(limits or (min(ys), max(ys))), 5)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(x_ticks, y_ticks, at, y_label)]
    for index, (name, points) in enumerate(lines.items()):
        parts.append(_line(name, [at(*point) for point in points], index % COLOURS, len(points) <= 40))
    about = f"{title}. " + "; ".join(f"{name} ends at {points[-1][1]:.3g}" for name, points in lines.items() if points)
    return _svg(WIDTH, HEIGHT, title, about, Markup("").join(parts))


def _axes(x_ticks: list[float], y_ticks: list[float], at: Place, y_label: str) -> Markup:
    parts = []
    for tick in y_ticks:
        y = at(x_ticks[0], tick)[1]
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        )
        parts.append(Markup('<text class="end" x="{}" y="{:.1f}">{}</text>').format(LEFT - 6, y + 4, f"{tick:.3g}"))
    for tick in x_ticks:
        x = at(tick, y_ticks[0])[0]
        parts.append(
            Markup('<text class="mid" x="{:.1f}" y="{}">{}</text>').format(x, HEIGHT - BOTTOM + 16, f"{tick:g}")
        )
    parts.append(Markup('<text class="mid" x="{}" y="{}">round</text>').format((LEFT + WIDTH) / 2, HEIGHT - 4))
    turned = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        Markup('<text class="mid" transform="rotate(-90)" x="{:.1f}" y="11">{}</text>').format(-turned, y_label)
    )
    return Markup("").join(parts)


def _line(name: str, places: list[tuple[float, float]], colour: int, dots: bool) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = Markup('<g class="s{}"><title>{}</title><polyline points="{}"/>').format(colour, name, path)
    marks = Markup("").join(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(x, y) for x, y in places)
    return drawn + (marks if dots or len(places) == 1 else Markup("")) + Markup("</g>")


def summed_up(series: Mapping[str, Points]) -> dict[str, Points]:
    """Return ``series``, or where there are more than colours the mean, the lowest and the highest of them."""
    if len(series) <= COLOURS:
        return dict(series)
    by_x: dict[float, list[float]] = {}
    for points in series.values():
        for x, y in points:
            if math.isfinite(y):
                by_x.setdefault(x, []).append(y)
    order = sorted(by_x)
    return {
        f"mean of {len(series)}": [(x, sum(by_x[x]) / len(by_x[x])) for x in order],
        "lowest": [(x, min(by_x[x])) for x in order],
        "highest": [(x, max(by_x[x])) for x in order],
    }


def samples_chart(name: str, kinds: Mapping[str, Points], everything: Points) -> Markup:
    """Return the picture of one class.

    Parameters
    ----------
    name : str
        Of the class.
    kinds : Mapping
        Points by the keys of ``KINDS``.
    everything : Points
        Of all classes, so that their pictures have one scale.
    """
    (left, right), (low, high) = ((min(c), max(c)) for c in zip(*everything, strict=True))
    across, up = ((SIDE - 12) / (span or 1) for span in (right - left, high - low))
    parts = []
    for kind in KINDS:
        places = [(6 + (x - left) * across, SIDE - 6 - (y - low) * up) for x, y in kinds.get(kind, ())]
        shape = "M{0:.1f} {1:.1f}m-2.5-2.5l5 5m-5 0l5-5" if kind == "held_out" else "M{0:.1f} {1:.1f}h0"
        path = "".join(shape.format(x, y) for x, y in places)
        parts.append(Markup('<path class="{}" d="{}"/>').format(kind.replace("_", "-"), path))
    about = ", ".join(f"{len(kinds.get(kind, ()))} {word}" for kind, word in KINDS.items())
    return _svg(SIDE, SIDE, f"Embeddings of {name}", about, Markup("").join(parts))


def _svg(width: int, height: int, title: str, about: str, content: Markup) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><desc>{}</desc>')
    return opening.format(width, height, title, about) + content + Markup("</svg>")


def _ticks(low: float, high: float, wanted: int, whole: bool = False) -> list[float]:
    """Return round numbers that span ``low`` to ``high``."""
    span = (high - low) or abs(high) or 1.0
    raw = span / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, max(last, first + 1) + 1)]
