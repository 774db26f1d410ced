"""The grid of a class: a row for each source, a column for each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

SIDE = 256  # pixels of the longer side of a picture in the grid
GAP = 6
LINE = 18


def grid(title: str, rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Return the pictures of each row side by side, with the row's name before them and numbers above.

    Parameters
    ----------
    title : str
        Above it all.
    rows : Mapping
        Pictures by the row's name, at least one.
    """
    rows = {name: [_small(picture) for picture in pictures] for name, pictures in rows.items()}
    everything = [picture for pictures in rows.values() for picture in pictures]
    width, height = (max(side) for side in zip(*(picture.size for picture in everything), strict=True))
    font, large = ImageFont.load_default(LINE - 5), ImageFont.load_default(LINE - 2)
    left = GAP * 2 + int(max(font.getlength(name) for name in rows))
    top = LINE * 2 + GAP * 2
    columns = max(len(pictures) for pictures in rows.values())
    across = max(left + columns * (width + GAP), GAP * 2 + int(large.getlength(title)))
    sheet = Image.new("RGB", (across, top + len(rows) * (height + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, "black", large)
    for column in range(columns):
        x = left + column * (width + GAP)
        pen.text((x + width / 2, top - GAP / 2), str(column), "black", font, anchor="mb")
    for row, (name, pictures) in enumerate(rows.items()):
        y = top + row * (height + GAP)
        pen.text((GAP, y + height / 2), name, "black", font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (left + column * (width + GAP), y))
    return sheet


def _small(picture: Image.Image) -> Image.Image:
    copy = picture.convert("RGB")
    copy.thumbnail((SIDE, SIDE))
    return copy
