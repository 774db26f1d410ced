"""Charts as inline SVG: colours are the page's, text is escaped, nothing needs a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from fedgen.report.plots import KINDS

WIDTH, HEIGHT = 440, 250  # of a chart; text of 12 is legible where a phone shows it at 320
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 38
DIGIT, TURNED = 7.7, 22  # width of a digit in wide fonts at that size; of the turned y label with the gaps beside it
COLOURS, DASHES = 8, 3  # that the style sheet has; more lines of nodes than colours are summed up
LARGEST, SMALLEST = 1e100, 1e-100  # that is drawn; ranges below the least are none
SIDE = 150  # of a class in the picture of samples

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str, series: Mapping[str, Points], y_label: str, limits: tuple[float, float] | None = None
) -> Markup:
    """Return a chart of lines over rounds.

    Parameters
    ----------
    title : str
        For those who cannot see it.
    series : Mapping
        Points (round, value) by name; what is not finite is left out. A name's place decides its looks.
    y_label : str
    limits : tuple[float, float], optional
        Of the y axis; by default what the values need.
    """
    lines = {name: drawn(points) for name, points in series.items()}
    everything = [point for points in lines.values() for point in points]
    if not everything:
        return Markup("<p>No figures.</p>")
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    start, end, rounds = _rounds(min(xs), max(xs))
    ticks = _ticks(*(limits or (min(ys), max(ys))), 5)
    numbers = tick_labels(ticks)
    left = max(LEFT, math.ceil(TURNED + DIGIT * max(map(len, numbers))))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - start) / (end - start) if end > start else 0.5  # a single round is in the middle
        up = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return left + across * (WIDTH - left - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        *(_level(number, left, at(start, tick)[1]) for number, tick in zip(numbers, ticks, strict=True)),
        *(_text("mid", at(x, ticks[0])[0], HEIGHT - BOTTOM + 16, str(x)) for x in rounds),
        _text("mid", (left + WIDTH - RIGHT) / 2, HEIGHT - 4, "round"),
        _text("mid turned", -(TOP + HEIGHT - BOTTOM) / 2, 12, y_label),
    ]
    for index, (name, points) in enumerate(lines.items()):
        if points:
            parts.append(_line(name, [at(*point) for point in points], looks(index), len(points) <= 40))
    about = f"{title}. " + "; ".join(f"{name} ends at {points[-1][1]:.3g}" for name, points in lines.items() if points)
    return _svg(WIDTH, HEIGHT, title, about, Markup("").join(parts))


def drawn(points: Points) -> list[tuple[float, float]]:
    """Return the points that a chart has room for: nodes may have sent any number."""
    return [(x, y) for x, y in points if math.isfinite(x) and abs(y) <= LARGEST]


def looks(index: int) -> str:
    """Return the classes of the line with that index: colours first, then the same ones dashed."""
    return f"s{index % COLOURS} dash{index // COLOURS % DASHES}"


def _level(number: str, left: int, y: float) -> Markup:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, WIDTH - RIGHT, y, y)
    return line + _text("end", left - 6, y + 4, number)


def _text(kind: str, x: float, y: float, words: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, words)


def _line(name: str, places: list[tuple[float, float]], kind: str, dots: bool) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = Markup('<g class="{}"><title>{}</title><polyline points="{}"/>').format(kind, name, path)
    marks = Markup("").join(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(x, y) for x, y in places)
    return line + (marks if dots else Markup("")) + Markup("</g>")


def summed_up(series: Mapping[str, Points]) -> dict[str, Points]:
    """Return ``series``, or where there are more than colours the mean, the lowest and the highest of them."""
    if len(series) <= COLOURS:
        return dict(series)
    by_x: dict[float, list[float]] = {}
    for points in series.values():
        for x, y in drawn(points):
            by_x.setdefault(x, []).append(y)
    order = sorted(by_x)
    return {
        f"mean of {sum(bool(drawn(points)) for points in series.values())}": [
            (x, sum(by_x[x]) / len(by_x[x])) for x in order
        ],
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


def _rounds(low: float, high: float) -> tuple[int, int, list[int]]:
    """Return the first and the last round of an axis, and those of them that are named, at most 8."""
    start, end = math.floor(low), math.ceil(high)
    size = 10 ** max(0, math.floor(math.log10(max(1, (end - start) / 8))))
    step = next(size * factor for factor in (1, 2, 5, 10) if (end - start) <= 7 * size * factor or factor == 10)
    return start, end, list(range(-(-start // step) * step, end + 1, step))


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Return round numbers that span ``low`` to ``high``."""
    largest = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * largest else largest  # what differs less is level
    raw = (span if span > SMALLEST else 1.0) / wanted
    exponent = math.floor(math.log10(raw))
    step = next(factor * 10.0**exponent for factor in (1, 2, 2.5, 5, 10) if factor * 10.0**exponent >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 2 - exponent) for number in range(first, max(last, first + 1) + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return ``ticks`` as text, with as many digits as tell them apart."""
    step, largest = ticks[1] - ticks[0], max(map(abs, ticks))
    finest = math.floor(math.log10(step) + 1e-9)
    finest -= round(step / 10.0**finest, 6) % 1 > 0  # steps of 2.5 have one digit more
    if 1e-4 <= largest < 1e7:
        return [f"{tick:.{max(0, -finest)}f}" for tick in ticks]
    return [f"{tick:.{math.floor(math.log10(largest)) - finest}e}" if tick else "0" for tick in ticks]
