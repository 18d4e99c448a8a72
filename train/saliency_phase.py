"""Phase 1: a classifier learns to tell the domains apart; the features it does so by are h."""

import numpy as np
import torch
from torch import Tensor

from ..runtime.errors import UsageError
from . import checkpoint as ckpt
from .augment import augment
from .coupling import Indices, batches, random_pairs
from .domains import Crop, Domain
from .run import Interrupted, Run
from .saliency import SaliencyNet, accuracy, build_saliency_net, require_features, soft_cross_entropy

EVALUATE_EVERY = 50
HELD_OUT = 256
"""Pictures per domain that only judge, at most, and never more than a tenth of the domain."""


def train_saliency(run: Run) -> SaliencyNet:
    """Train the classifier to its held-out threshold, or take it from the checkpoint gone on from.

    A pretrained backbone stays frozen until `saliency_warmup_threshold`; then all is tuned at a tenth of the rate.

    Raises:
        UsageError: a domain of fewer than two pictures: none could be held out.
        TrainingError: the bound on steps is reached and the classifier is blind.
        Interrupted: after saving.
    """
    config, resumed = run.config, run.resumed
    finished = resumed and (resumed.phase == "velocity" or resumed.metrics.get("done"))
    if resumed and finished and (net := resumed.saliency()):
        return net.to(run.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        net = build_saliency_net(config.saliency_net, load_weights=not resumed)
    net = net.to(run.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.saliency_learning_rate)
    step, reached = 0, 0.0
    frozen = net.pretrained
    if resumed:
        ckpt.adopt(net, resumed.part("saliency_net"))
    if resumed and run.resumed_state:
        ckpt.restore_optimizer(optimizer, run.resumed_state)
        step, reached, frozen = resumed.step, resumed.metrics["accuracy"], bool(resumed.metrics["frozen"])

    (learn0, judge0), (learn1, judge1) = (_hold_out(run, domain, place) for place, domain in enumerate(run.pictures))
    draw = random_pairs(len(learn0), len(learn1), run.seed)

    def pair(k: int) -> tuple[int, int]:
        i, j = draw(k)
        return int(learn0[i]), int(learn1[j])

    def save(done: bool) -> None:
        metrics = {"accuracy": reached, "frozen": float(frozen), "done": float(done)}
        run.save("saliency", step, _tensors(net), ckpt.optimizer_tensors(optimizer), metrics)

    size, bound = config.train_batch_size, config.saliency_max_steps
    for x0, x1 in batches(*run.pictures, pair, size, step, bound, run.seed, flip=False):
        _freeze(net, frozen)
        for group in optimizer.param_groups:
            group["lr"] = config.saliency_learning_rate * (0.1 if net.pretrained and not frozen else 1.0)
        loss = _step(run, net, optimizer, x0, x1, step)
        step += 1
        if step % EVALUATE_EVERY == 0 or step == bound:
            reached = accuracy(net, judge0, judge1)
            if frozen and reached >= config.saliency_warmup_threshold:
                frozen = False
            elif reached >= config.saliency_accuracy_threshold:
                bound = step
        run.log("saliency", step, bound, {"loss": loss, "accuracy": reached})
        if step == bound:
            break
        if run.stop.is_set():
            save(done=False)
            raise Interrupted
        if step % config.checkpoint_every == 0:
            save(done=False)
    if warning := require_features(reached, config.saliency_accuracy_threshold, step):
        run.report.note(warning)
    run.report.note(f"classifier: {reached:.1%} of held-out pictures right after {step} steps")
    save(done=True)
    if run.stop.is_set():
        raise Interrupted
    net.requires_grad_(False).eval()
    return net


def _step(run: Run, net: SaliencyNet, optimizer: torch.optim.Optimizer, x0: Tensor, x1: Tensor, step: int) -> Tensor:
    """One update on both domains' pictures, augmented one by one; gradients summed over minibatches."""
    config, rng = run.config, run.rng("saliency", step)
    x, share = torch.cat([x0, x1]), torch.cat([torch.zeros(len(x0)), torch.ones(len(x1))])
    blend = torch.rand(len(x), generator=rng) < config.saliency_blend_fraction
    a = torch.rand(len(x), generator=rng)
    mixed = (1 - a)[:, None, None, None] * torch.cat([x0, x0]) + a[:, None, None, None] * torch.cat([x1, x1])
    x, share = torch.where(blend[:, None, None, None], mixed, x), torch.where(blend, a, share)
    order = torch.randperm(len(x), generator=rng)  # each minibatch sees both domains
    x, share = x[order].to(run.device), share[order].to(run.device)
    total = torch.zeros((), device=run.device)
    parts = -(-len(x) // config.train_minibatch_size)  # of even sizes: BatchNorm cannot learn from a remainder of one
    for part, target in zip(x.tensor_split(parts), share.tensor_split(parts), strict=True):
        logits = net(augment(part, config.saliency_augmentations, rng))
        loss = soft_cross_entropy(logits, target, config.saliency_label_smoothing) * (len(part) / len(x))
        loss.backward()
        total += loss.detach()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _freeze(net: SaliencyNet, frozen: bool) -> None:
    """A pretrained backbone keeps its batch statistics throughout, and its weights while frozen."""
    net.train()
    if net.pretrained:
        net.backbone.eval()
    net.backbone.requires_grad_(not frozen)


def _hold_out(run: Run, domain: Domain, place: int) -> tuple[Indices, Tensor]:
    """Indices to learn from, and centre crops [N, 3, size, size] of the others to judge by."""
    if len(domain) < 2:
        raise UsageError(
            f"{domain.name}: {len(domain)} picture; the classifier needs at least 2 in each domain, one of them to "
            f"judge it by. Add pictures, or train without it (--set saliency_loss_weight=0)"
        )
    order = np.random.default_rng([run.seed, 4, place]).permutation(len(domain))
    n = min(HELD_OUT, max(1, len(domain) // 10))
    return order[n:], run.tensor(np.stack([domain.crop(int(i), Crop()) for i in order[:n]]))


def _tensors(net: SaliencyNet) -> ckpt.Tensors:
    return {f"saliency_net.{k}": v for k, v in net.state_dict().items()}
