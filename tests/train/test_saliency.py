import pickle
import threading
import urllib.error
from dataclasses import replace

import pytest
import torch
from rfp.runtime import TrainingError, UsageError
from rfp.train import saliency_phase
from rfp.train.codec import Identity
from rfp.train.job import Job
from rfp.train.net_config import ConvSaliencyNet, ResNetSaliencyNet
from rfp.train.opening import open_run
from rfp.train.saliency import (
    accuracy,
    build_saliency_net,
    load_weights_file,
    require_features,
    torchvision,
)
from rfp.train.saliency_phase import train_saliency
from safetensors.torch import save_file
from trainings import Listener, draw_domains, tiny


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    """Neither a cache of downloaded weights nor a network."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(5)
    return torchvision().models.resnet18(weights=None).state_dict()


def resnet(**changes):
    return ResNetSaliencyNet(**({"backbone": "resnet18", "latent_channels": 8} | changes))


def test_a_blind_classifier_stops_training_and_a_weak_one_is_warned_of():
    assert require_features(0.99, 0.99, 10) is None
    warning = require_features(0.9, 0.99, 10)
    assert "90.0%" in warning and "99.0%" in warning and "10 steps" in warning and "saliency_max_steps" in warning
    with pytest.raises(TrainingError, match=r"(?s)only 60.0%.*wanted 99.0%.*saliency_loss_weight"):
        require_features(0.6, 0.99, 10)


def test_missing_imagenet_weights_name_both_ways_out(tmp_path):
    with pytest.raises(UsageError) as e:
        build_saliency_net(resnet())
    for words in (
        "resnet18",
        str(tmp_path / "torch"),
        "no network",
        "saliency_net.weights=PATH",
        '"pretrained": false',
    ):
        assert words in str(e.value)
    assert build_saliency_net(resnet(), load_weights=False).pretrained
    assert not build_saliency_net(resnet(pretrained=False)).pretrained


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_weights_are_taken_from_a_file(tmp_path, state, suffix):
    path = tmp_path / f"ü{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    net = build_saliency_net(resnet(weights=str(path), pretrained=False))
    assert net.pretrained
    backbone = net.backbone[1].state_dict()
    assert len(backbone) == len(state) - 2  # all but the head of ImageNet's classes
    assert all(torch.equal(backbone[k], v) for k, v in state.items() if not k.startswith("fc."))
    assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


class Malice:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path(marker).touch()".replace("marker", repr(Malice.marker)),))


def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path):
    Malice.marker = str(tmp_path / "it ran")
    pickle.loads(pickle.dumps(Malice()))
    assert (tmp_path / "it ran").exists()  # the pickle does harm where it is trusted
    (tmp_path / "it ran").unlink()
    torch.save({"conv1.weight": Malice()}, tmp_path / "bad.pth")
    with pytest.raises(UsageError, match=r"bad\.pth: not a state dict of tensors that can be read without"):
        build_saliency_net(resnet(weights=str(tmp_path / "bad.pth")))
    assert not (tmp_path / "it ran").exists()


def test_files_that_are_no_fitting_state_dict_are_refused(tmp_path, state):
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("list.pth", "number.pth", "text.safetensors"):
        with pytest.raises(UsageError, match=name):
            load_weights_file(tmp_path / name)
    torch.save({k: v for k, v in state.items() if "layer3" not in k}, tmp_path / "half.pth")
    torch.save(torchvision().models.resnet50(weights=None).state_dict(), tmp_path / "other.pth")
    for name in ("half.pth", "other.pth", "nowhere.pth"):
        with pytest.raises(UsageError, match=name):
            build_saliency_net(resnet(weights=str(tmp_path / name)))


def test_features_feed_the_classifier_and_resnets_see_imagenets_range():
    net = build_saliency_net(ConvSaliencyNet(channels=[8], latent_channels=5)).eval()
    x = torch.rand(2, 3, 16, 16)
    assert net.features(x).shape == (2, 5)
    torch.testing.assert_close(net.classifier(net.features(x)), net(x))
    normalize = build_saliency_net(resnet(pretrained=False)).backbone[0]
    white = normalize(torch.ones(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(white, (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]))


def test_accuracy_is_the_mean_over_the_domains():
    class Bright(torch.nn.Module):
        def forward(self, x):
            s = x.mean(dim=(1, 2, 3))
            return torch.stack([-s, s], dim=1)

    dark, bright = -torch.ones(2, 3, 4, 4), torch.ones(6, 3, 4, 4)
    assert accuracy(Bright(), dark, bright) == 1.0 and accuracy(Bright(), bright, dark) == 0.0
    assert accuracy(Bright(), torch.cat([dark[:1], bright[:1]]), bright, batch=2) == 0.75


@pytest.fixture
def begun(tmp_path):
    folders = draw_domains(tmp_path)

    def begin(**changes):
        run = open_run(Job(tiny(**changes), (folders[0],), (folders[1],), tmp_path / "run", device="cpu"), Listener())
        run.folder.mkdir(exist_ok=True)
        return run

    return begin


def test_a_frozen_backbone_stays_until_the_warm_up_threshold_and_moves_after(begun, tmp_path, state, monkeypatch):
    torch.save(state, tmp_path / "w.pth")
    monkeypatch.setattr(saliency_phase, "EVALUATE_EVERY", 2)
    monkeypatch.setattr(saliency_phase, "accuracy", lambda *args: next(scores))
    seen = []
    step = saliency_phase._step

    def watch(run, net, optimizer, *rest):
        before = {k: v.clone() for k, v in net.state_dict().items()}
        loss = step(run, net, optimizer, *rest)
        moved = {k.split(".")[0] for k, v in net.state_dict().items() if not torch.equal(before[k], v)}
        seen.append((moved, optimizer.param_groups[0]["lr"]))
        return loss

    monkeypatch.setattr(saliency_phase, "_step", watch)
    scores = iter([0.7, 0.85, 0.87, 0.96])  # after steps 2, 4, 6, 8
    run = begun(
        max_size=32,
        saliency_learning_rate=0.01,
        saliency_warmup_threshold=0.8,
        saliency_accuracy_threshold=0.95,
        saliency_max_steps=50,
        saliency_net={"type": "ResNetSaliencyNet", "backbone": "resnet18", "weights": str(tmp_path / "w.pth")},
    )
    net = train_saliency(run, Identity())
    head = {"latent", "classifier"}
    assert [moved for moved, _ in seen] == [head] * 4 + [head | {"backbone"}] * 4
    assert [rate for _, rate in seen] == [0.01] * 4 + [pytest.approx(0.001)] * 4
    # Batch statistics of pretrained weights stay throughout.
    assert torch.equal(net.backbone[1].bn1.running_mean, state["bn1.running_mean"])
    assert not net.training and not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("batch", [5, 4])
def test_a_resnet_from_scratch_learns_batch_statistics_from_uneven_minibatches(begun, batch):
    """10 pictures by 3: a remainder of one would have no variance at 32 px."""
    run = begun(
        max_size=32,
        train_batch_size=batch,
        train_minibatch_size=3,
        saliency_max_steps=2,
        saliency_accuracy_threshold=0,
        saliency_net={"type": "ResNetSaliencyNet", "backbone": "resnet18", "pretrained": False},
    )
    net = train_saliency(run, Identity())
    assert net.backbone[1].bn1.running_mean.abs().sum() > 0


def test_held_out_pictures_are_never_learned_from(begun, monkeypatch):
    run = begun(saliency_max_steps=8)
    drawn = set()
    read = type(run.domain0).read

    def watch(self, index):
        if threading.current_thread() is not threading.main_thread():  # which reads what judges
            drawn.add((self.name, index))
        return read(self, index)

    monkeypatch.setattr(type(run.domain0), "read", watch)
    train_saliency(run, Identity())
    for place, domain in enumerate((run.domain0, run.domain1)):
        learn, judge = saliency_phase._hold_out(run, Identity(), domain, place)
        assert len(learn) + len(judge) == len(domain) and len(judge) == 1
        assert {i for name, i in drawn if name == domain.name} == {int(i) for i in learn}


def test_gradients_of_the_classifier_are_summed_over_minibatches(begun):
    """The same step, whatever the minibatch; no augmentation, whose draws differ."""
    nets = []
    for minibatch in (5, 2, 1):
        run = begun(train_minibatch_size=minibatch, saliency_augmentations=[], saliency_blend_fraction=0.5)
        torch.manual_seed(0)
        net = build_saliency_net(run.config.saliency_net).double()
        x = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(2)).double()
        saliency_phase._step(run, net, torch.optim.SGD(net.parameters(), 0.1), Identity(), x[0], x[1], 3)
        nets.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(nets[1], nets[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(nets[2], nets[0], rtol=1e-6, atol=1e-7)


class Halved(torch.nn.Module):
    """A codec that is none, and halves."""

    def encode(self, x):
        return x / 2


@pytest.mark.parametrize(("codec", "fraction"), [(Identity(), 0.5), (Halved(), 0.5), (Halved(), 0.0)])
def test_the_classifier_is_told_the_share_of_domain_1_in_what_it_sees(begun, monkeypatch, codec, fraction):
    """Domain 0 is -1 everywhere and domain 1 is 1, so a blend says its share itself; with a codec it is one of z."""
    run = begun(train_batch_size=64, train_minibatch_size=9, saliency_blend_fraction=fraction)
    net, seen, told, lots = build_saliency_net(run.config.saliency_net), [], [], []
    net.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    loss, augment = saliency_phase.soft_cross_entropy, saliency_phase.augment
    monkeypatch.setattr(saliency_phase, "soft_cross_entropy", lambda x, y, s: told.append(y) or loss(x, y, s))
    monkeypatch.setattr(
        saliency_phase, "augment", lambda x, names, chances: lots.append((names, chances)) or augment(x, [], chances)
    )
    dark = -torch.ones(64, 3, 16, 16)
    saliency_phase._step(run, net, torch.optim.SGD(net.parameters(), 0.1), codec, dark, -dark, 3)
    share, full = torch.cat(told), 1 if isinstance(codec, Identity) else 0.5
    torch.testing.assert_close(torch.cat(seen), (full * (2 * share - 1))[:, None, None, None].expand(-1, 3, 16, 16))
    whole = (share == 0) | (share == 1)
    assert whole.float().mean().item() == pytest.approx(1 - fraction, abs=0.15)
    assert share[whole].mean().item() == pytest.approx(0.5, abs=0.1)
    # What is augmented is augmented once, and each picture by draws of its own.
    chances = torch.cat([c for names, c in lots if names])
    assert len(chances) == len(chances.unique(dim=0)) == 128


def test_a_domain_of_one_picture_is_refused_with_the_way_out(tmp_path):
    folders = draw_domains(tmp_path, 1, 3)
    run = open_run(Job(tiny(), (folders[0],), (folders[1],), tmp_path / "run", device="cpu"), Listener())
    with pytest.raises(UsageError, match=r"dark: 1 picture.*saliency_loss_weight=0"):
        train_saliency(run, Identity())


def test_a_device_without_forward_mode_is_refused_before_any_work_unless_no_flow_is_trained(tmp_path, monkeypatch):
    """As Apple's MPS, whose linear layers have no such derivatives."""

    def lacking(*args):
        raise NotImplementedError("Trying to use forward AD with linear that does not support it")

    monkeypatch.setattr("torch.func.jvp", lacking)
    inputs = draw_domains(tmp_path)
    job = Job(tiny(), inputs[:1], inputs[1:], tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match=r"saliency_loss_weight: torch .* lacks on cpu"):
        open_run(job, Listener())
    for able in (replace(job, only="saliency"), replace(job, config=tiny(saliency_loss_weight=0))):
        assert open_run(able, Listener()).folder == tmp_path / "run"
