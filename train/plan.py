"""`rfp train --dry-run`: what a training would do and need."""

from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .adversarial import Critic
from .codec import VAE, codec_losses
from .codec_config import VAEConfig
from .config import RFPix2pixModel
from .domains import Domain
from .frame_cache import GIGABYTE, cache_folder
from .job import Job
from .net_config import ResNetSaliencyNet
from .noise import Noise
from .opening import open_run
from .perceptual import build_perceptual
from .re_pairing import turns
from .run import Reporter, Run
from .saliency import build_saliency_net, resnet_weights
from .velocity_net import build_velocity_net, parameters


def plan(job: Job, report: Reporter) -> list[str]:
    """Resolve everything that training would, change nothing, and describe it line by line.

    Raises:
        UsageError, CheckpointError, MediaError: as training would.
    """
    run = open_run(job, report, dry_run=True)
    config = run.config
    match config.pairs_by:
        case "random":
            coupling = "random"
        case "minibatch_ot":
            coupling = f"optimal transport within each {config.train_batch_size} pairs"
        case "structure":
            coupling = f"{config.structure_candidates} nearest by {config.structure_embedder}"
            if config.matches_colours:
                coupling += ", in each other's colours"
            if again := turns(config, *map(len, run.pictures)):
                coupling += f", anew before step {', '.join(f'{step:,}' for step in again)}"
        case "paired":
            coupling = "each with the one of its own name"
    lines = [
        f"run       {run.folder}",
        f"device    {run.device}",
        f"domain 0  {pictures(run.domain0)}",
        f"domain 1  {pictures(run.domain1)}",
        f"crops     {config.max_size}×{config.max_size} px",
        f"coupling  {coupling}",
    ]
    if undecoded := sum(d.undecoded for d in (run.domain0, run.domain1) if isinstance(d, Domain)):
        lines.append(
            f"videos    about {undecoded / GIGABYTE:.2f} GB of frames to decode to {cache_folder() / 'frames'} "
            f"(frame_cache_gigabytes {config.frame_cache_gigabytes:g}); what they show is not in this plan"
        )
    with torch.device("meta"):
        velocity = build_velocity_net(config)
        saliency = (
            build_saliency_net(config.saliency_net, config.codec.latents, load_weights=False)
            if config.saliency_loss_weight
            else None
        )
    if isinstance(config.codec, VAEConfig):
        with torch.device("meta"):
            vae = VAE(config.codec)
        lines += [
            f"phase 0   {kept(run, 'codec')}VAE, {parameters(vae):,} parameters, {config.codec.steps:,} steps of "
            f"{config.codec.train_batch_size} pictures ({config.codec.train_images:,} in all)",
            f"memory    about {codec_memory(config, config.codec) / 2**30:.1f} GiB on the {run.device} for phase 0",
            f"latents   {'×'.join(map(str, config.latent_shape))}: the flow moves these",
        ]
    if saliency:
        lines.append(
            f"phase 1   {kept(run, 'saliency')}{config.saliency_net.type}, {parameters(saliency):,} parameters, up to "
            f"{config.saliency_max_steps:,} steps, to {config.saliency_accuracy_threshold:.1%} of held-out pictures"
        )
        if isinstance(config.saliency_net, ResNetSaliencyNet) and not run.finished("saliency"):
            lines += [f"weights   {w}" for w in [resnet_weights(config.saliency_net)] if w]
    else:
        lines.append("phase 1   none (saliency_loss_weight is 0)")
    cut = config.train_images < job.config.train_images
    shorter = f", in place of {job.config.train_images:,}: max_epochs" if cut else ""
    lines += [
        f"phase 2   {kept(run, 'velocity')}{config.velocity_net.type}, {parameters(velocity):,} parameters, "
        f"{config.steps:,} steps of {config.train_batch_size} pairs ({config.train_images:,} in all{shorter})",
        f"memory    about {memory(config) / 2**30:.1f} GiB on the {run.device} for phase 2",
    ]
    if config.adversarial_weight:
        lines.append(
            f"critic    from step {config.critic_from:,}; Euler steps it looks at: {config.num_inference_steps}"
        )
    if job.only:
        lines.append(f"only      the {job.only} phase")
    if run.resumed and run.resumed_state:
        lines.append(f"goes on   from {run.resumed.phase} step {run.resumed.step:,}")
    elif run.resumed:
        lines.append(f"begins    with the weights of {run.resumed.phase} step {run.resumed.step:,}, at step 0")
    return lines


def pictures(domain: Domain | Noise) -> str:
    """How many pictures a domain has: about, where the frames of a video were only counted."""
    if isinstance(domain, Noise):
        return f"noise, N(0, 1) of shape {'×'.join(map(str, domain.shape))}: a generative model"
    about = "about " if domain.undecoded else ""
    return f"{about}{len(domain):,} pictures in {domain.name} ({len(domain.skipped)} skipped)"


def kept(run: Run, phase: str) -> str:
    """Said of a phase that is done, or begins with what another run made."""
    if phase in run.parts:
        return "from other weights: " if phase == "velocity" else "taken as it is: "
    return "trained already: " if run.finished(phase) else ""


def memory(config: RFPix2pixModel) -> int:
    """Estimated bytes of phase 2: weights, gradient, two moments and the average, and one minibatch's activations.

    Fake tensors take the kernels that real ones would on a CPU, without memory and computing. As on a GPU, its
    attention keeps no map of all tokens by all tokens.
    """
    with FakeTensorMode():
        x = torch.empty(config.train_minibatch_size, *config.latent_shape)
        velocity = build_velocity_net(config)
        total, calls = 5 * 4 * parameters(velocity), 1
        if config.adversarial_weight:  # calls one after another; two critics, one looked through
            critic, calls = Critic(config.channels), config.num_inference_steps
            total += 2 * 4 * 4 * parameters(critic) + 4 * saved_bytes(critic, lambda: critic(x))
        total += calls * saved_bytes(velocity, lambda: velocity(x, torch.empty(len(x))))
        if config.saliency_loss_weight:  # forward mode keeps the primal and what the tangent's gradient needs
            saliency = build_saliency_net(config.saliency_net, config.codec.latents, load_weights=False).eval()
            total += 4 * parameters(saliency) + 2 * saved_bytes(saliency, lambda: saliency(x))
    return total


def codec_memory(config: RFPix2pixModel, codec: VAEConfig) -> int:
    """Estimated bytes of phase 0, as for phase 2."""
    perceptual, n = build_perceptual(codec), codec.train_minibatch_size
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, noise = torch.empty(n, 3, config.max_size, config.max_size), torch.empty(n, *config.latent_shape)
        vae = VAE(codec)
        kept = saved_bytes(vae, lambda: codec_losses(vae, perceptual, x, noise))
    return 5 * 4 * parameters(vae) + (4 * parameters(perceptual) if perceptual else 0) + kept


def saved_bytes(net: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of `forward()`, besides the net's own weights."""
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held on to, for an address that is free again may be taken again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())
