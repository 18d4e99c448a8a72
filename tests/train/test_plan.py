"""What `--dry-run` says of memory is what a training takes."""

import pytest
import torch
from rfp.train.plan import memory, saved_bytes
from rfp.train.training import train
from torch import nn
from torch.profiler import ProfilerActivity, profile
from trainings import TINY, Listener, draw_domains, job

UNET = TINY["velocity_net"] | {"model_channels": 32, "ch_mult": [1, 2]}
ATTENTION = UNET | {"attention_resolutions": [1, 2], "num_attention_heads": 4}
DIT = {"type": "DiT", "patch_size": 2, "hidden_size": 32, "depth": 3, "num_attention_heads": 4}
CONV = {"type": "ConvSaliencyNet", "channels": [64, 128], "latent_channels": 32}


def most_bytes(call):
    """The most that torch's allocator held at once during `call()`, of what was taken in it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"velocity_net": UNET},
        {"velocity_net": ATTENTION},
        {"velocity_net": DIT},
        {
            "velocity_net": DIT | {"patch_size": 8, "hidden_size": 512},
            "train_minibatch_size": 2,
        },  # the weights are most
        {"velocity_net": UNET, "saliency_loss_weight": 1, "saliency_net": CONV},
    ],
)
def test_the_estimate_is_what_a_step_takes(tmp_path, changes):
    draw_domains(tmp_path)
    sizes = {"max_size": 32, "train_batch_size": 8, "train_minibatch_size": 8, "train_images": 16}
    sizes |= {"sample_batch_size": 1, "num_inference_steps": 1}
    one = job(tmp_path, **({"saliency_loss_weight": 0, "saliency_max_steps": 1} | sizes | changes))
    taken = most_bytes(lambda: train(one, Listener()))
    assert 0.7 < memory(one.config) / taken < 1.3, (memory(one.config), taken)


def test_what_autograd_keeps_is_counted_once_and_without_the_weights():
    net = nn.Linear(4, 8)
    x = torch.zeros(16, 4, requires_grad=True)
    assert saved_bytes(net, lambda: net(x)) == x.nbytes  # not the weight, although x's gradient needs it

    def twice():
        y = net(x).exp()  # keeps its result [16, 8], which the product keeps again, as views
        return y[:, :4] * y[:, 4:]

    assert saved_bytes(net, twice) == x.nbytes + 16 * 8 * 4
