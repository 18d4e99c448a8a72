import math
import re

import pytest
import torch
import torch.nn.functional as F
from rfp.runtime import UsageError
from rfp.train import dinov2
from rfp.train.dinov2 import build_dinov2, timm_names, weights_file
from rfp.train.embedders import _signs, build_embedder, foreground, grid, hog, pixels, thumbnail
from rfp.train.saliency import torchvision
from rfp.train.training import train
from safetensors.torch import save_file
from trainings import Listener, draw_domains, job, tiny

CPU = torch.device("cpu")
torchvision()  # timm imports it
import timm  # noqa: E402


def stars(n, size=64, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def disc(place, colour, ground):
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    inside = (y - place[0]) ** 2 + (x - place[1]) ** 2 < 144
    return torch.where(inside, torch.tensor(colour)[:, None, None], torch.tensor(ground)[:, None, None]) / 127.5 - 1


def test_foreground_finds_the_same_shape_in_other_colours_and_thumbnail_the_same_colours():
    places = [(16, 16), (16, 48), (48, 16), (48, 48)]
    a = torch.stack([disc(place, (200, 30, 30), (240, 240, 240)) for place in places])
    b = torch.stack([disc(place, (90, 250, 250), (20, 20, 60)) for place in places])
    c = torch.stack([disc(place, (220, 60, 40), (230, 250, 250)) for place in places])
    for embed, other in ((foreground, b), (thumbnail, c)):
        assert (embed(a) @ embed(other).T).argmax(dim=1).tolist() == [0, 1, 2, 3]


def bars(angle, ink, ground):
    """Parallel stripes across the picture, at an angle in degrees."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    wave = (math.cos(math.radians(angle)) * x + math.sin(math.radians(angle)) * y).mul(2 * math.pi / 16).sin() > 0
    return torch.where(wave, torch.tensor(ink)[:, None, None], torch.tensor(ground)[:, None, None]) / 127.5 - 1


def test_hog_finds_edges_of_the_same_direction_whatever_the_colours():
    angles = [0, 22.5, 45, 90, 135]
    a = torch.stack([bars(angle, (200.0, 30.0, 30.0), (240.0, 240.0, 240.0)) for angle in angles])
    b = torch.stack([bars(angle, (250.0, 250.0, 0.0), (20.0, 20.0, 60.0)) for angle in angles])
    edges_a, edges_b = hog(a)[:, :512], hog(b)[:, :512]
    alike = edges_a @ edges_b.T
    assert alike.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]
    assert alike.diagonal().min() > 0.95  # nor does it matter which side is the brighter one
    votes = edges_a.square().view(5, 8, 64).sum(dim=2)[[0, 2, 3, 4]]  # by direction: 22.5° a bin
    assert votes.argmax(dim=1).tolist() == [0, 2, 4, 6]


def test_hog_votes_by_hand():
    """A ramp to the right and down at 3:1 has its gradient at atan(1/3) = 18.43°, .819 of the way from bin 0 to 1."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    ramp = ((3 * x + y) / 300).expand(1, 3, 64, 64)
    inner = hog(ramp)[0, :512].view(8, 8, 8)[:, 2:6, 2:6].square()  # away from the border; before the square root
    share = math.degrees(math.atan2(1, 3)) / 22.5
    torch.testing.assert_close(inner[1] / (inner[0] + inner[1]), torch.full((4, 4), share), atol=1e-3, rtol=0)
    assert inner[2:].max() < 1e-6


def test_hog_halves_are_unit_vectors_even_of_a_flat_picture():
    for x in (stars(5), torch.full((5, 3, 64, 64), 0.5)):
        edges, colours = hog(x).split([512, 192], dim=1)
        torch.testing.assert_close(colours.norm(dim=1), torch.ones(5))
        assert edges.isfinite().all()
    torch.testing.assert_close(hog(stars(5))[:, :512].norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("embed", [foreground, thumbnail, pixels])
def test_embeddings_are_unit_vectors_and_a_flat_picture_has_one_too(embed):
    torch.testing.assert_close(embed(stars(5)).norm(dim=1), torch.ones(5))
    assert embed(torch.full((1, 3, 64, 64), 0.5)).isfinite().all()


def test_a_grid_keeps_cosines_and_says_where():
    features = torch.randn(6, 512, 8, 8, generator=torch.Generator().manual_seed(0))
    features[3:] += 2 * features[:3]  # three pairs of cosine .89
    vectors, whole = grid(features), F.normalize(F.adaptive_avg_pool2d(features, 4).flatten(1), dim=1)
    assert vectors.shape == (6, 16 * 256)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(vectors @ vectors.T, whole @ whole.T, atol=0.06, rtol=0)
    turned = grid(features.flip(-1))
    assert (turned * vectors).sum(dim=1).max() < 0.5  # the same things in other places


def test_the_signs_of_the_projection_never_change():
    """Vectors that were kept must fit those that are made: another numpy or torch may draw no other signs."""
    signs = _signs(512)
    assert signs.shape == (16, 512, 256) and signs.unique().tolist() == [-1, 1]
    assert signs[0, 0, :16].tolist() == SIGNS and int(signs.sum()) == SIGNS_SUM


SIGNS = [-1, 1, 1, 1, 1, 1, -1, 1, -1, 1, 1, 1, 1, 1, -1, -1]
SIGNS_SUM = -748


def backbone(**net):
    return tiny(
        coupling="structure",
        structure_embedder="backbone",
        max_size=32,
        saliency_net={"type": "ResNetSaliencyNet", "backbone": "resnet18"} | net,
    )


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("resnet") / "resnet18.pth"
    net = torchvision().models.resnet18(weights=None).eval()
    torch.save(net.state_dict(), path)
    return net, path


def test_backbone_is_the_last_feature_map_of_the_given_weights(resnet):
    net, path = resnet
    embedder = build_embedder(backbone(weights=str(path)), CPU, lambda path: "abc")
    assert embedder.name == "resnet18/1/abc" and embedder.parts and embedder.width == 4096
    seen = []
    net.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = stars(2, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        net(((x + 1) / 2 - mean) / std)
    assert seen[0].shape == (2, 512, 7, 7)
    torch.testing.assert_close(embedder.embed(x), grid(seen[0]))


def test_the_nets_name_is_that_of_its_weights_and_no_weights_are_read_for_it(monkeypatch):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", None)
    embedder = build_embedder(backbone(), CPU, lambda path: pytest.fail("there is no file"))
    assert re.fullmatch(r"resnet18/1/resnet18-[0-9a-f]{8}", embedder.name)


def test_a_backbones_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        build_embedder(backbone(weights=str(tmp_path / "no.pth")), CPU, lambda path: "")


@pytest.fixture(scope="module")
def vit():
    """timm's own DINOv2 ViT-S/14 at 518 px, with weights that every part of the net can be told by."""
    torch.manual_seed(7)
    net = timm.create_model("vit_small_patch14_dinov2", num_classes=0).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for block in net.blocks:
            block.ls1.gamma += 0.3
            block.ls2.gamma += 0.3
    return net


def of_torch_hub(state):
    """As in dinov2_vits14_pretrain.pth: 174 tensors of timm's names, and the token of the masks."""
    return state | {"mask_token": torch.zeros(1, 384)}


def of_hugging_face(state):
    """As in facebook/dinov2-small: checked against transformers 5.23's Dinov2Model (CONTRIBUTING.md)."""
    named = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": torch.zeros(1, 384),
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for i in range(12):
        of, own = f"encoder.layer.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            for part, value in zip(("query", "key", "value"), state[f"{own}.attn.qkv.{kind}"].split(384), strict=True):
                named[f"{of}.attention.attention.{part}.{kind}"] = value.clone()
            named[f"{of}.attention.output.dense.{kind}"] = state[f"{own}.attn.proj.{kind}"]
            for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                named[f"{of}.{layer}.{kind}"] = state[f"{own}.{layer}.{kind}"]
        for n in (1, 2):
            named[f"{of}.layer_scale{n}.lambda1"] = state[f"{own}.ls{n}.gamma"]
    return named


@pytest.mark.parametrize(
    ("names", "suffix"), [(dict, ".safetensors"), (of_torch_hub, ".pth"), (of_hugging_face, ".safetensors")]
)
def test_dinov2_from_any_hubs_file_gives_timms_own_features(vit, tmp_path, names, suffix):
    path, state = tmp_path / f"ü{suffix}", names(vit.state_dict())
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    x = stars(1, 224)
    own = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224, pretrained_cfg_overlay={}).eval()
    own.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(vit.state_dict()), own))
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        tokens = own.forward_features(((x + 1) / 2 - mean) / std)
        features = build_dinov2("dinov2_vits14", path)(x)
    assert features.shape == (1, 384, 16, 16)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens[:, 1:])
    torch.testing.assert_close(features[0, :, 2, 5], tokens[0, 1 + 2 * 16 + 5])  # rows before columns


def test_a_prefix_of_transformers_classifiers_is_taken_off(vit):
    state = vit.state_dict()
    named = {f"dinov2.{k}": v for k, v in of_hugging_face(state).items()} | {"classifier.weight": torch.zeros(2, 768)}
    renamed = timm_names(named)
    assert renamed.keys() == state.keys() and all(torch.equal(renamed[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm.bias": None}, "1 tensors are missing, too many or of another shape, e.g. norm.bias"),
        ({"more": torch.zeros(1)}, "e.g. more"),
        ({"blocks.3.ls1.gamma": torch.zeros(768)}, "e.g. blocks.3.ls1.gamma"),
        ({"pos_embed": torch.zeros(1, 1371, 384)}, "e.g. pos_embed"),
        ({"pos_embed": torch.zeros(1, 200**2 + 1, 384)}, "e.g. pos_embed"),
        ({"pos_embed": torch.zeros(3)}, "e.g. pos_embed"),
    ],
)
def test_weights_of_another_net_are_refused_before_a_net_is_made(vit, tmp_path, monkeypatch, change, said):
    state = {k: v for k, v in (vit.state_dict() | change).items() if v is not None}
    torch.save(state, tmp_path / "w.pth")
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    with pytest.raises(UsageError, match=f"w.pth: not the weights of dinov2_vits14: .*{re.escape(said)}"):
        build_dinov2("dinov2_vits14", tmp_path / "w.pth")


def test_a_weights_file_runs_no_code(tmp_path):
    torch.save({"a": tmp_path}, tmp_path / "w.pth")  # a Path is not a tensor: unpickling it would call something
    with pytest.raises(UsageError, match="not a state dict of tensors that can be read without running its code"):
        build_dinov2("dinov2_vits14", tmp_path / "w.pth")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and HF_HUB_OFFLINE as it works: read when huggingface_hub is imported."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_missing_weights_name_the_ways_out_before_any_work(offline, tmp_path):
    draw_domains(tmp_path)
    there = job(tmp_path, structure_embedder="dinov2_vits14", coupling="structure")
    with pytest.raises(UsageError) as e:
        train(there, Listener())
    for words in (
        f"neither in {offline}",
        "timm/vit_small_patch14_dinov2.lvd142m or facebook/dinov2-small",
        "HF_HUB_OFFLINE is set",
        "internet once",
        "HF_HOME",
        "structure_weights=PATH",
        "foreground",
    ):
        assert words in str(e.value)
    assert not there.folder.exists()
    with pytest.raises(UsageError, match=r"structure_weights: .*no\.pth: no such file; connect"):
        weights_file("dinov2_vits14", str(tmp_path / "no.pth"))


@pytest.mark.parametrize("repo", ["timm/vit_small_patch14_dinov2.lvd142m", "facebook/dinov2-small"])
def test_weights_are_found_in_the_hugging_face_cache(offline, repo):
    folder = offline / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("f" * 40)
    (folder / "snapshots" / ("f" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("f" * 40) / "model.safetensors").write_bytes(b"weights")
    assert weights_file("dinov2_vits14", None).read_bytes() == b"weights"


def test_without_timm_the_pip_line_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'rfp[dino]'")):
        dinov2.weights_file("dinov2_vits14", None)
