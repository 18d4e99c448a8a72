"""The preset for a training that names none."""

import pytest
import torch
from PIL import Image
from rfp.runtime import UsageError
from rfp.train.choice import suited
from rfp.train.config import RFPix2pixModel, to_json
from rfp.train.reading import load_config

GPU = torch.device("meta")  # any that is no CPU


@pytest.mark.parametrize(("sizes", "name"), [([64, 64, 300], "small"), ([64, 300, 128], "structure")])
def test_the_median_short_side_chooses_the_size_of_crops(tmp_path, sizes, name):
    for place, side in enumerate(sizes):
        Image.new("RGB", (side, side + 100)).save(tmp_path / f"{place}.png")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    assert suited((tmp_path,), (tmp_path,), GPU)[0] == name


def test_without_a_gpu_or_pictures_to_turn_from(tmp_path):
    Image.new("RGB", (500, 500)).save(tmp_path / "a.png")
    assert suited((tmp_path,), (tmp_path,), torch.device("cpu"))[0] == "tiny"
    assert suited("random", (tmp_path,), GPU)[0] == "generative"
    with pytest.raises(UsageError, match="no such file or folder"):
        suited((tmp_path,), (tmp_path / "none",), GPU)


def test_the_config_s_own_defaults_are_the_preset_structure():
    defaults, preset = to_json(RFPix2pixModel()), to_json(load_config("structure"))
    assert defaults | {"coupling": "structure"} == preset
