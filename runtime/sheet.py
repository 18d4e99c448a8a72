"""Contact sheets: many pictures on one."""

import math

import numpy as np

from .pixels import Uint8


def sheet(pictures: Uint8, columns: int | None = None) -> Uint8:
    """uint8 [N, H, W, C] → [rows·H, columns·W, C], row by row, white where no picture is left; square if it can be."""
    n, h, w, c = pictures.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    cells = np.concatenate([pictures, np.full((rows * columns - n, h, w, c), 255, np.uint8)])
    return cells.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
