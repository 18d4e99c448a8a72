import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from rfp.runtime import ConfigError, UsageError
from rfp.runtime.pixels import to_float
from rfp.train import checkpoint as ckpt
from rfp.train.codec import (
    VAE,
    Attention,
    Identity,
    build_codec,
    codec_losses,
    decode,
    encode,
    kl_divergence,
    normalize,
)
from rfp.train.codec_config import IdentityConfig, VAEConfig
from rfp.train.codec_phase import measure
from rfp.train.config import to_json
from rfp.train.job import Job
from rfp.train.loss import see
from rfp.train.net_config import ConvSaliencyNet, ResNetSaliencyNet
from rfp.train.opening import open_run
from rfp.train.perceptual import STAGES, build_perceptual
from rfp.train.plan import plan
from rfp.train.reading import load_config, validate
from rfp.train.run import Interrupted
from rfp.train.saliency import build_saliency_net, torchvision
from rfp.train.training import train
from safetensors.torch import save_file
from trainings import TINY, VAE_TINY, Listener, assert_same, draw_domains, finish, job, tiny


def vae(**changes):
    torch.manual_seed(3)
    return VAE(VAEConfig(**{**VAE_TINY, **changes})).eval()


def pictures(n, side=16, width=None):
    return torch.rand(n, 3, side, width or side, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("changes", [{}, {"mid_attention": True}, {"ch_mult": [1]}, {"ch_mult": [1, 2, 2]}])
def test_z_is_smaller_by_the_factor_and_comes_back_in_the_size_of_the_picture(changes):
    net = vae(latent_channels=5, **changes)
    z = net.encode(pictures(2, 16, 24))
    assert z.shape == (2, 5, 16 // net.config.factor, 24 // net.config.factor)
    assert net.decode(z).shape == (2, 3, 16, 24)


def test_every_key_of_the_net_counts_as_another_net_and_no_key_of_the_training_does():
    base = VAEConfig(**VAE_TINY)
    built = {k: v.shape for k, v in VAE(base).state_dict().items()}
    others = {"latent_channels": 5, "model_channels": 16, "ch_mult": [1, 3], "num_res_blocks": 2, "mid_attention": True}
    for key, value in others.items():
        other = VAEConfig(**{**VAE_TINY, key: value})
        assert other.net != base.net and {k: v.shape for k, v in VAE(other).state_dict().items()} != built
    for key in VAEConfig.model_fields.keys() - others.keys() - {"type"}:
        assert base.model_copy(update={key: None}).net == base.net
    assert IdentityConfig().net != base.net


def test_identity_is_no_codec():
    codec, x = build_codec(IdentityConfig()), pictures(3)
    assert isinstance(codec, Identity) and not codec.state_dict()
    assert encode(codec, x, 1) is x and decode(codec, x, 1) is x
    assert tiny().latent_shape == (3, 16, 16) and tiny(codec=VAE_TINY).latent_shape == (3, 8, 8)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_pictures_are_encoded_alike_in_any_minibatch(n):
    net, x = vae(), pictures(5)
    torch.testing.assert_close(encode(net, x, n), net.encode(x).detach(), atol=1e-5, rtol=1e-5)


def test_attention_is_over_all_positions_in_one_head():
    """By hand, in the order in which checkpoints hold queries, keys and values."""
    torch.manual_seed(4)
    block, h = Attention(16).requires_grad_(False), torch.randn(2, 16, 3, 5)
    torch.nn.init.normal_(block.out.weight)
    q, k, v = block.qkv(block.norm(h)).flatten(2).split(16, dim=1)
    weights = (q.transpose(1, 2) @ k / 4).softmax(dim=2)
    wanted = h + block.out((v @ weights.transpose(1, 2)).unflatten(2, (3, 5)))
    torch.testing.assert_close(block(h), wanted, rtol=1e-4, atol=1e-5)


def test_the_divergence_is_that_of_two_gaussians():
    mean, logvar = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    wanted = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(kl_divergence(mean, logvar), wanted)


def test_the_losses_are_of_the_picture_drawn_with_the_noise():
    net, x, noise = vae(), pictures(2), torch.randn(2, 3, 8, 8)
    mean, logvar = net.posterior(x)
    y = net.decoder(mean + (0.5 * logvar).exp() * noise)
    l1, kl, difference = codec_losses(net, None, x, noise)
    assert torch.isclose(l1, (y - x).abs().mean()) and difference == 0
    assert torch.isclose(kl, kl_divergence(mean, logvar).mean() / (3 * 16 * 16))
    assert codec_losses(net, lambda a, b: (a - b).square().sum(), x, noise)[2] > 0


def test_normalised_latents_have_mean_0_and_deviation_1_and_decode_to_the_same_pictures(tmp_path):
    draw_domains(tmp_path)
    run = open_run(job(tmp_path, codec=VAE_TINY), Listener())
    net, images = vae(), np.concatenate([run.samples(d) for d in run.pictures])
    x = torch.from_numpy(to_float(images))
    before = net.decode(net.encode(x))
    normalize(net, *measure(run, net, images))
    z = net.encode(x)
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(net.decode(z), before, atol=1e-4, rtol=1e-4)
    normalize(net, torch.zeros(3), torch.zeros(3))
    assert bool(net.encode(x).isfinite().all())  # a channel that says nothing


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        (
            {"type": "VAE", "perceptual_weight": 0.1},
            "codec.perceptual_weight 0.1 needs the ImageNet weights of vgg",
        ),
        ({"type": "VAE", "l1_weight": 0}, "codec.l1_weight and perceptual_weight are both 0"),
        ({"type": "VAE", "train_minibatch_size": 64}, "codec.train_minibatch_size is larger than train_batch_size"),
        ({"type": "VAE", "train_batch_size": 5}, "codec.train_batch_size: input should be a multiple of 2"),
        ({"type": "VAE", "latent_chanels": 5}, "latent_chanels: unknown key; did you mean latent_channels"),
        ({"type": "VQ"}, "codec.type: 'VQ' is not one of Identity, VAE"),
        ({"latent_channels": 4}, "codec.type: missing; one of Identity, VAE"),
        (
            {"type": "VAE", "ch_mult": [1, 1, 1, 1, 1]},
            "max_size 16 is not a multiple of the velocity net's 2 times",
        ),
    ],
)
def test_a_codec_that_does_not_fit_together_is_refused(codec, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        validate(TINY | {"codec": codec})


def test_old_configs_have_no_codec_and_whole_ones_come_back():
    assert tiny().codec == IdentityConfig()
    config = tiny(codec=VAE_TINY)
    assert validate(to_json(config)) == config
    assert load_config("latent").codec.factor > 1


# The perceptual loss.


def save_weights(path, name):
    torch.manual_seed(7)
    with torch.device("meta"):
        net = getattr(torchvision().models, name)(weights=None)
    net.classifier, net.fc = torch.nn.Identity(), torch.nn.Identity()  # the largest part, which nothing here uses
    net.to_empty(device="cpu")
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1) if p.dim() > 1 else torch.nn.init.ones_(p)
    for key, buffer in net.named_buffers():
        buffer.fill_(1 if key.endswith("var") else 0)
    torch.save(net.state_dict(), path)
    return net


def perceptual(path, name, weight=1.0):
    return build_perceptual(VAEConfig(perceptual_weight=weight, perceptual_weights=str(path), perceptual_backbone=name))


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "mobilenet_v2"])
def test_the_features_are_the_backbones_own(tmp_path, name):
    net = save_weights(tmp_path / "w.pt", name).eval()
    loss, x = perceptual(tmp_path / "w.pt", name), pictures(2, 32)
    stages, seen = loss.features(x), []
    body = net.features if name in STAGES else net
    at = [n - 1 for n in STAGES[name]] if name in STAGES else ["relu", "layer1", "layer2", "layer3", "layer4"]
    for place in at:
        layer = body[place] if isinstance(place, int) else getattr(body, place)
        layer.register_forward_hook(lambda module, inputs, out: seen.append(out.clone()))
    (body if name in STAGES else net)(loss.normalize(x))
    assert len(stages) == len(seen) == 5
    for ours, theirs in zip(stages, seen, strict=True):
        unit = theirs / (theirs.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
        torch.testing.assert_close(ours, unit, atol=1e-5, rtol=1e-4)
    assert loss(x, x) == 0 and loss(x, x.flip(-1)) > 0.01 and not any(p.requires_grad for p in loss.parameters())
    far = [(a - b).square().sum(dim=1).mean() for a, b in zip(stages, loss.features(x.flip(-1)), strict=True)]
    torch.testing.assert_close(loss(x, x.flip(-1)), sum(far))


def test_weights_under_other_names_are_taken_in_their_order_if_every_shape_fits(tmp_path):
    net = save_weights(tmp_path / "w.pt", "mobilenet_v2")
    renamed = {f"n{i}": v for i, v in enumerate(net.features.state_dict().values())}
    torch.save(renamed, tmp_path / "renamed.pt")
    x, y = pictures(1, 32), pictures(1, 32).flip(-1)
    one, other = (perceptual(tmp_path / name, "mobilenet_v2")(x, y) for name in ("w.pt", "renamed.pt"))
    assert torch.equal(one, other)


def test_missing_or_wrong_perceptual_weights_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere.pt: no such file; give the ImageNet weights of vgg16"):
        perceptual(tmp_path / "nowhere.pt", "vgg16")
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"does not fit resnet18: \d+ tensors missing or of another shape, e.g. conv1"):
        perceptual(tmp_path / "a.safetensors", "resnet18")
    assert perceptual(tmp_path / "nowhere.pt", "vgg16", weight=0.0) is None


# The classifier on latents.


@pytest.mark.parametrize("latents", [3, 4])
@pytest.mark.parametrize(
    "config",
    [ConvSaliencyNet(channels=[8], latent_channels=5), ResNetSaliencyNet(backbone="resnet18", pretrained=False)],
    ids=lambda c: c.type,
)
def test_classifiers_take_latents_and_are_seen_through(config, latents):
    net = build_saliency_net(config, latents).eval().requires_grad_(False)
    z = torch.randn(2, latents, 16, 16, requires_grad=True)
    assert net(z).shape == (2, 2)
    seen = see(net.features, z, torch.randn_like(z))
    assert seen.shape == (2, config.latent_channels) and seen.abs().max() > 0


def test_a_resnet_keeps_its_pretrained_layers_for_latents_and_learns_only_a_stem(tmp_path):
    resnet = save_weights(tmp_path / "w.pt", "resnet18")
    net = build_saliency_net(ResNetSaliencyNet(backbone="resnet18", weights=str(tmp_path / "w.pt")), 4)
    assert torch.equal(net.backbone[0][0].conv1.weight, resnet.layer1[0].conv1.weight) and net.pretrained
    old = build_saliency_net(ResNetSaliencyNet(backbone="resnet18", pretrained=False))
    assert not [k for k in old.state_dict() if k.startswith("stem")]  # checkpoints from before latents load


# The training.


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two domains, and a training with a codec that nobody interrupted: 6 steps of each phase."""
    work = tmp_path_factory.mktemp("work")
    draw_domains(work)
    finish(job(work, "whole", codec=VAE_TINY))
    return work


@pytest.mark.parametrize(
    "moments",
    [[("codec", 1)], [("codec", 4)], [("codec", 6)], [("codec", 2), ("saliency", 2), ("velocity", 3)]],
    ids=lambda moments: " ".join(f"{p[0]}{s}" for p, s in moments),
)
def test_phase_0_interrupted_and_resumed_is_uninterrupted_bit_for_bit(work, tmp_path, moments):
    there = Job(tiny(codec=VAE_TINY), (work / "dark",), (work / "bright",), tmp_path / "run", device="cpu")
    for moment in moments:
        listener = Listener()
        with pytest.raises(Interrupted):
            train(there, stop_at(listener, moment))
        assert listener.steps[-1] == moment
    finish(there)
    assert_same(tmp_path / "run", work / "whole")


def stop_at(listener, moment):
    import signal

    listener.on_step = lambda phase, step: signal.raise_signal(signal.SIGINT) if (phase, step) == moment else None
    return listener


def test_the_phases_follow_one_another_on_one_codec(work):
    run = work / "whole"
    found = {p.name.split("-")[0]: ckpt.load(p) for p in ckpt.checkpoints(run)}
    assert list(found) == list(ckpt.PHASES)
    codecs = [found[phase].part("codec_ema") for phase in ckpt.PHASES]
    assert all(c.keys() == codecs[0].keys() and all(torch.equal(c[k], codecs[0][k]) for k in c) for c in codecs)
    assert (
        found["codec"].finished("codec")
        and found["codec"].part("codec_net")
        and not found["velocity"].part("codec_net")
    )
    assert found["velocity"].velocity().channels == 3 and found["velocity"].codec().std.min() > 0
    assert found["velocity"].tensors["velocity_ema.stem.weight"].shape[1] == 3 + 2  # and coordinates
    with Image.open(run / "samples" / "codec-00000006.png") as grid:  # 3 + 3 pictures in 2 columns of before | after
        assert grid.size == (4 * 16, 3 * 16)
    with Image.open(run / "samples" / "step-00000006.png") as grid:
        assert grid.size == (4 * 16, 2 * 16)


def test_the_codec_learns_what_it_did_not_see(work, tmp_path):
    finish(job(work, "longer", codec=VAE_TINY | {"train_images": 360}, train_images=5))
    psnr = []
    for name, step in (("whole", 6), ("longer", 90)):
        checkpoint = ckpt.load(work / name / "checkpoints" / f"codec-{step:08d}.safetensors")
        psnr.append(checkpoint.metrics["psnr"])
    assert psnr[1] > psnr[0] + 3


def test_the_figures_of_phase_0_are_logged(work):
    import json

    lines = [json.loads(line) for line in (work / "whole" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["phase"] == "codec"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"l1", "kl", "psnr", "gradient", "rate"} <= lines[0].keys() and lines[-1]["psnr"] > 0
    assert lines[-1]["rate"] < lines[2]["rate"] and all(math.isfinite(v) for v in lines[-1].values() if v != "codec")


def test_draws_of_the_phases_that_were_there_before_codecs_are_as_they_were(work):
    run = open_run(job(work, "x"), Listener())
    draws = {phase: torch.rand(1, generator=run.rng(phase, 5)).item() for phase in ckpt.PHASES}
    wanted = {
        phase: torch.rand(
            1,
            generator=torch.Generator().manual_seed(
                int(np.random.SeedSequence([0, n, 5]).generate_state(1, np.uint64)[0] >> 1)
            ),
        ).item()
        for n, phase in enumerate(("saliency", "velocity", "codec"))
    }
    assert draws == wanted and len(set(draws.values())) == 3


def test_a_codec_needs_two_pictures_a_domain(tmp_path):
    draw_domains(tmp_path, 1, 3)
    with pytest.raises(UsageError, match="dark: 1 picture; the codec needs at least 2"):
        finish(job(tmp_path, codec=VAE_TINY))


def test_weights_go_only_into_a_codec_like_their_own(work, tmp_path):
    for other in (VAE_TINY | {"latent_channels": 5}, {"type": "Identity"}):
        with pytest.raises(UsageError, match="its codec is not the config's"):
            start = ckpt.find(work / "whole")
            finish(
                Job(tiny(codec=other), (work / "dark",), (work / "bright",), tmp_path / "n", device="cpu", start=start)
            )


def test_the_plan_covers_phase_0(work):
    text = "\n".join(plan(job(work, "planned", codec=VAE_TINY), Listener()))
    for words in ("phase 0   VAE", "6 steps of 4 pictures (24 in all)", "GiB on the cpu for phase 0", "3×8×8"):
        assert words in text
    with pytest.raises(UsageError, match="no such file"):
        missing = VAE_TINY | {"perceptual_weight": 1, "perceptual_weights": "nowhere.pt"}
        plan(job(work, "planned", codec=missing), Listener())


def test_a_generative_training_has_noise_of_the_latents_shape_and_a_codec_of_domain_1(work, tmp_path):
    config = tiny(codec=VAE_TINY, saliency_loss_weight=0, train_images=10)
    finish(Job(config, "random", (work / "bright",), tmp_path / "run", device="cpu"))
    checkpoint = ckpt.load(ckpt.find(tmp_path / "run"))
    assert checkpoint.generative and checkpoint.velocity().channels == 3 and checkpoint.codec().std.min() > 0
    with Image.open(tmp_path / "run" / "samples" / "codec-00000006.png") as grid:  # 3 pictures in 2 columns
        assert grid.size == (4 * 16, 2 * 16)
    config = tiny(codec=VAE_TINY, saliency_loss_weight=0, coupling="minibatch_ot")
    with pytest.raises(ConfigError, match="it compares noise of the codec's latents with pixels"):
        finish(Job(config, "random", (work / "bright",), tmp_path / "other", device="cpu"))


@pytest.mark.slow
def test_a_perceptual_loss_and_augmentations_train_and_resume_bit_for_bit(work, tmp_path):
    save_weights(tmp_path / "w.pt", "mobilenet_v2")
    codec = VAE_TINY | {
        "perceptual_weight": 0.1,
        "perceptual_weights": str(tmp_path / "w.pt"),
        "perceptual_backbone": "mobilenet_v2",
        "augmentations": ["color_jitter", "hflip"],
    }
    config = tiny(codec=codec, saliency_loss_weight=0, train_images=5)
    one, other = (
        Job(config, (work / "dark",), (work / "bright",), tmp_path / name, device="cpu") for name in ("one", "other")
    )
    finish(one)
    with pytest.raises(Interrupted):
        train(other, stop_at(Listener(), ("codec", 3)))
    finish(other)
    assert_same(tmp_path / "one", tmp_path / "other")
    assert "perceptual" in (tmp_path / "one" / "metrics.jsonl").read_text()
