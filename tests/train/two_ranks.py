"""What each of several ranks runs in test_ranks.py: `RANK=0 WORLD_SIZE=2 … python two_ranks.py WORK`."""

import json
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pytest import MonkeyPatch
from rfp.runtime import RfpError, TrainingError, UsageError
from rfp.train import ranks, saliency_phase
from rfp.train.run import Interrupted
from rfp.train.saliency import SaliencyNet
from rfp.train.training import train
from torch import nn
from trainings import TINY, VAE_TINY, Listener, finish, job

# A gain makes more of rounding, and so does Muon: of latents one process with other convolution
# kernels is 7.6e-3 from itself with a diagonal, 1.4e-3 without; of uneven shares two ranks are 1.01e-4 from one with
# matrices; of even ones 3.5e-4 at the tests' rate, which so short a training begins with, and on another processor of
# uneven ones 1.2e-4 and of latents 7.2e-3.
PLAIN = {"optimizer": "adamw", "velocity_net": TINY["velocity_net"] | {"input_gain": "none"}}
MUON = {"train_batch_size": 6}
SLOW = {"learning_rate": 0.002}
EVEN = MUON | SLOW | {"optimizer": "adamw"}
UNEVEN = {"train_batch_size": 5, "structure_pairing": True, "self_pairing": 0.6, "bridge_noise": 0.3} | SLOW | PLAIN
CRITIC = {"train_batch_size": 5, "saliency_loss_weight": 0, "adversarial_weight": 0.5, "adversarial_start": 0.2} | PLAIN
LATENT = {"train_batch_size": 6, "codec": VAE_TINY | {"augmentations": ["color_jitter", "hflip"]}} | SLOW | PLAIN
BATCH_NORM = {
    "saliency_max_steps": 2,
    "saliency_accuracy_threshold": 0,
    "train_batch_size": 4,
    "train_images": 4,
}


def normalized_by_batch(config: object, latents: int | None, load_weights: bool = True) -> SaliencyNet:
    """A classifier that learns the statistics of its minibatches, as a ResNet without pretrained weights does."""
    layers = (
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return SaliencyNet(nn.Identity(), nn.Sequential(*layers), 8, 8, pretrained=False)


def finish_batch_norm(work: Path) -> None:
    """A training with such a classifier."""
    with MonkeyPatch.context() as patch:
        patch.setattr(saliency_phase, "build_saliency_net", normalized_by_batch)
        finish(job(work, "batch norm", **BATCH_NORM))


def main(work: Path) -> dict[str, object]:
    """Train, and say what was seen."""
    seen: dict[str, object] = {"rank": ranks.rank(), "share": list(range(7)[ranks.share(7)])}
    listener = finish(job(work, "even", **EVEN))
    seen["reported"] = len(listener.steps) + len(listener.notes)
    finish(job(work, "muon", **MUON))
    finish(job(work, "uneven", **UNEVEN))
    finish(job(work, "critic", **CRITIC))
    finish(job(work, "latent", **LATENT))
    finish_batch_norm(work)

    def press(name: str, step: int) -> None:
        if (name, step) == ("velocity", 2):
            signal.raise_signal(signal.SIGTERM)  # on this rank alone, for the other reports nothing
            signal.raise_signal(signal.SIGTERM)

    try:
        train(job(work, "stopped", **EVEN), Listener(press))
    except Interrupted:
        seen["interrupted"] = (work / "stopped" / "checkpoints" / "velocity-00000002.safetensors").is_file()
    finish(job(work, "from one", **EVEN))  # begun by one rank

    start = time.monotonic()
    with ranks.in_turn():
        seen["turn"] = time.monotonic() - start
        time.sleep(0.3)
    seen["once"] = ranks.once(lambda: ranks.rank())
    try:
        ranks.fits(1)
    except UsageError as e:
        seen["fits"] = str(e)
    try:
        ranks.agree("data", ranks.rank())
    except UsageError as e:
        seen["agree"] = str(e)
    return seen


def fail() -> None:
    """Both ranks end by an error, each of its own, the second for want of the first."""
    if ranks.rank() == 1:
        time.sleep(0.3)
        raise TrainingError("the first to fail")
    ranks.barrier()


if __name__ == "__main__":
    try:
        with ranks.together():
            found = main(Path(sys.argv[1]))
            print(json.dumps(found), flush=True)
            fail()
    except RfpError as e:
        print(json.dumps([type(e).__name__, str(e)]))
