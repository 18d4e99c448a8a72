"""The gallery: every picture in its place, whole or not at all."""

import numpy as np
import pytest
from PIL import Image
from rfp.cli.gallery import MARGIN, PAPER, gallery


def squares(rows, columns, size=20):
    """Flat pictures, each of a colour of its own."""
    return [[np.full((size, size, 3), (10 * r, 60 * c, 200), np.uint8) for c in range(columns)] for r in range(rows)]


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_every_picture_is_shown_once_at_its_scale(tmp_path, count):
    rows = squares(count, 3)
    gallery(rows, ["input", "ours", "truth"], tmp_path / "g.png", scale=3)
    with Image.open(tmp_path / "g.png") as image:
        sheet = np.asarray(image)
    for row in rows:
        for picture in row:
            assert (sheet == picture[0, 0]).all(axis=2).sum() == 60 * 60
    assert (sheet[: MARGIN // 2] == PAPER).all()
    assert [p.name for p in tmp_path.iterdir()] == ["g.png"]


def test_headers_are_written_above_their_columns(tmp_path):
    gallery(squares(1, 3), ["input", "", "truth"], tmp_path / "g.png", scale=3)
    with Image.open(tmp_path / "g.png") as image:
        head = np.asarray(image.convert("L"))[: MARGIN + 12, MARGIN:-MARGIN]
    inked = [(part < 150).any() for part in np.array_split(head, 3, axis=1)]
    assert inked == [True, False, True]


def test_pictures_of_other_sizes_fit_in_their_cells(tmp_path):
    rows = [[np.zeros((20, 36, 3), np.uint8), np.zeros((10, 10, 3), np.uint8)]]
    gallery(rows, ["wide", "small"], tmp_path / "g.png", scale=2)
    with Image.open(tmp_path / "g.png") as image:
        assert (np.asarray(image) == 0).all(axis=2).sum() == 40 * 72 + 20 * 20


@pytest.mark.parametrize("rows", [[], squares(2, 2)])
def test_rows_that_do_not_fit_the_headers_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="rows of 3 images"):
        gallery(rows, ["input", "ours", "truth"], tmp_path / "g.png")
    assert not any(tmp_path.iterdir())
