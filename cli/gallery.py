"""One picture that shows many: a labelled grid of inputs, results and truths."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..runtime.files import write_aside
from ..runtime.pixels import Uint8

PAPER, INK, EDGE = (250, 249, 246), (58, 58, 66), (222, 220, 214)
GAP, BLOCK_GAP, MARGIN = 6, 26, 20
"""Pixels between cells, between blocks, and around everything."""
TARGET_ASPECT = 1.5
"""Width over height that the number of blocks side by side is chosen for."""


def gallery(rows: Sequence[Sequence[Uint8]], headers: Sequence[str], path: Path, scale: int = 3) -> None:
    """Write a PNG, whole or not at all: one row of cells for each of `rows`, under `headers`.

    Many rows are broken into several blocks side by side, each with its headers.

    Args:
        rows: images uint8 [H, W, 3], as many in each row as there are headers; all fit in cells of the largest.
        scale: how many times the images are enlarged.

    Raises:
        ValueError: there are no rows, or a row's length is not that of the headers.
    """
    if not rows or any(len(row) != len(headers) for row in rows):
        raise ValueError(f"gallery() needs rows of {len(headers)} images, got lengths {sorted({len(r) for r in rows})}")
    cell_h = max(image.shape[0] for row in rows for image in row) * scale
    cell_w = max(image.shape[1] for row in rows for image in row) * scale
    text = max(11, min(cell_w // 10, 22))
    font, head = ImageFont.load_default(text), round(text * 1.7)
    block_w = len(headers) * (cell_w + GAP) - GAP
    blocks = _blocks(len(rows), block_w, cell_h)
    per_block = -(-len(rows) // blocks)
    sheet = Image.new(
        "RGB",
        (
            2 * MARGIN + blocks * (block_w + BLOCK_GAP) - BLOCK_GAP,
            2 * MARGIN + head + per_block * (cell_h + GAP) - GAP,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for block in range(blocks):
        left = MARGIN + block * (block_w + BLOCK_GAP)
        for column, header in enumerate(headers):
            x = left + column * (cell_w + GAP)
            draw.text((x + cell_w / 2, MARGIN + head / 2 - 3), header, fill=INK, font=font, anchor="mm")
            for k, row in enumerate(rows[block * per_block : (block + 1) * per_block]):
                y = MARGIN + head + k * (cell_h + GAP)
                _paste(sheet, draw, row[column], (x, y, cell_w, cell_h), scale)
    with write_aside(path) as partial:
        sheet.save(partial, "PNG")


def _blocks(rows: int, block_w: int, cell_h: int) -> int:
    """How many blocks side by side bring the sheet nearest to TARGET_ASPECT, none of them empty."""

    def off(blocks: int) -> float:
        aspect = blocks * (block_w + BLOCK_GAP) / (-(-rows // blocks) * (cell_h + GAP))
        return max(aspect / TARGET_ASPECT, TARGET_ASPECT / aspect)

    best = min(range(1, rows + 1), key=off)
    return -(-rows // -(-rows // best))


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, pixels: Uint8, cell: tuple[int, int, int, int], scale: int
) -> None:
    """Enlarge one image into the middle of its cell, with a thin edge around it."""
    x, y, cell_w, cell_h = cell
    image = Image.fromarray(pixels).resize((pixels.shape[1] * scale, pixels.shape[0] * scale), Image.Resampling.LANCZOS)
    x, y = x + (cell_w - image.width) // 2, y + (cell_h - image.height) // 2
    sheet.paste(image, (x, y))
    draw.rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=EDGE)
