"""Phase 1: a classifier learns to tell the domains apart; the features it does so by are h."""

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.errors import TrainingError
from . import checkpoint as ckpt
from . import ranks
from .augment import augment, lots
from .codec import Codec, Identity, encode
from .coupling import batches, random_pairs
from .domains import Crop, Domain, Indices, hold_out
from .loss import interpolate
from .run import Interrupted, Run
from .saliency import SaliencyNet, accuracy, build_saliency_net, require_features, soft_cross_entropy

EVALUATE_EVERY = 50


def train_saliency(run: Run, codec: Codec) -> SaliencyNet:
    """Train the classifier on what the codec makes of pictures, to its held-out threshold; or take it from the
    checkpoint that holds it.

    A pretrained backbone stays frozen until `saliency_warmup_threshold`; then all is tuned at a tenth of the rate.

    Raises:
        UsageError: a domain of fewer than two pictures: none could be held out.
        TrainingError: the bound on steps is reached and the classifier is blind.
        Interrupted: after saving.
    """
    config, resumed = run.config, run.resumed
    if (source := run.finished("saliency")) and (done := source.saliency()):
        return done.to(run.device)
    resumed = resumed if resumed and resumed.phase == "saliency" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        net = build_saliency_net(config.saliency_net, config.codec.latents, load_weights=not resumed)
    net = net.to(run.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.saliency_learning_rate, fused=config.fused_adamw)
    step, reached = 0, 0.0
    frozen = net.pretrained
    if resumed:
        resumed.give(net, "saliency_net")
    if resumed and run.resumed_state:
        ckpt.restore_optimizers(run.resumed_state, optimizer)
        step, reached = resumed.step, resumed.metrics.get("accuracy", 0.0)
        frozen = bool(resumed.metrics.get("frozen", 0.0))

    (learn0, judge0), (learn1, judge1) = (
        _hold_out(run, codec, domain, place) for place, domain in enumerate(run.pictures)
    )
    draw = random_pairs(len(learn0), len(learn1), run.seed)

    def pair(k: int) -> tuple[int, int]:
        i, j = draw(k)
        return int(learn0[i]), int(learn1[j])

    def save(done: bool) -> None:
        metrics = {"accuracy": reached, "frozen": float(frozen), "done": float(done)}
        run.save("saliency", step, _tensors(codec, net), ckpt.optimizer_tensors(optimizer), metrics)

    size, bound = config.train_batch_size, config.saliency_max_steps
    for x0, x1, _ in batches(*run.pictures, pair, size, step, bound, run.seed, flip=False):
        _freeze(net, frozen)
        for group in optimizer.param_groups:
            group["lr"] = config.saliency_learning_rate * (0.1 if net.pretrained and not frozen else 1.0)
        loss = _step(run, net, optimizer, codec, x0, x1, step)
        step += 1
        if step % EVALUATE_EVERY == 0 or step == bound:
            reached = ranks.once(lambda: accuracy(net, judge0, judge1))
            if frozen and reached >= config.saliency_warmup_threshold:
                frozen = False
            elif reached >= config.saliency_accuracy_threshold:
                bound = step
        judged = {"accuracy": reached} if step >= EVALUATE_EVERY or step == bound else {}
        run.log("saliency", step, bound, {"loss": loss, **judged})
        if step == bound:
            break
        if run.stop.is_set():
            save(done=False)
            raise Interrupted
        if step % config.checkpoint_every == 0:
            save(done=False)
    try:
        warning = require_features(reached, config.saliency_accuracy_threshold, step)
    except TrainingError:
        save(done=False)  # with a higher bound the same run goes on
        raise
    if warning:
        run.report.note(warning)
    run.report.note(f"classifier: {reached:.1%} of held-out pictures right after {step} steps")
    save(done=True)
    if run.stop.is_set():
        raise Interrupted
    net.requires_grad_(False).eval()
    return net


def _step(
    run: Run, net: SaliencyNet, optimizer: torch.optim.Optimizer, codec: Codec, x0: Tensor, x1: Tensor, step: int
) -> Tensor:
    """One update on both domains' pictures, augmented one by one; gradients summed over minibatches and ranks.

    x0, x1 [B, 3, H, W] are this rank's share of the batch; what is drawn is drawn for the whole batch.
    """
    config, rng, size = run.config, run.rng("saliency", step), run.config.train_batch_size
    mine, augmentations = ranks.share(size), config.saliency_augmentations
    blend, a = torch.rand(2, size, 2, generator=rng)[:, mine].flatten(1)
    chances = lots(2 * size, rng)[2 * mine.start : 2 * mine.stop]
    x = torch.stack([x0, x1], dim=1).flatten(0, 1)  # in turn, so that each minibatch sees both domains alike
    if not isinstance(codec, Identity):
        # Before any blend: the lines on which the flow will ask for h run between latents, not between pictures.
        x = encode(codec, augment(x, augmentations, chances).to(run.device), config.train_minibatch_size).cpu()
        x0, x1, augmentations = x[0::2], x[1::2], []
    share = torch.tensor([0.0, 1.0]).repeat(len(x0))
    mixed = interpolate(x0.repeat_interleave(2, 0), x1.repeat_interleave(2, 0), a)
    blended = blend < config.saliency_blend_fraction
    x, share = torch.where(blended[:, None, None, None], mixed, x), torch.where(blended, a, share)
    x, share = x.to(run.device), share.to(run.device)
    total = torch.zeros((), device=run.device)
    parts = -(-len(x) // config.train_minibatch_size)  # of even sizes: BatchNorm cannot learn from a remainder of one
    for part, target, chance in zip(*(z.tensor_split(parts) for z in (x, share, chances)), strict=True):
        logits = net(augment(part, augmentations, chance))
        loss = soft_cross_entropy(logits, target, config.saliency_label_smoothing) * (len(part) / (2 * size))
        loss.backward()
        total += loss.detach()
    ranks.add([p.grad for p in net.parameters() if p.grad is not None] + [total])
    ranks.mean(_running_statistics(net))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _running_statistics(net: SaliencyNet) -> list[Tensor]:
    """What BatchNorm learns outside of the gradient, where it learns at all."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    return [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]


def _freeze(net: SaliencyNet, frozen: bool) -> None:
    """A pretrained backbone keeps its batch statistics throughout, and its weights while frozen."""
    net.train()
    if net.pretrained:
        net.backbone.eval()
    net.backbone.requires_grad_(not frozen)


def _hold_out(run: Run, codec: Codec, domain: Domain, place: int) -> tuple[Indices, Tensor]:
    """Indices to learn from, and the encoded centre crops [N, C, H, W] of the others to judge by."""
    needs = (
        "the classifier needs at least 2 in each domain, one of them to judge it by. Add pictures, or train without it "
        "(--set saliency_loss_weight=0)"
    )
    learn, judge = hold_out(domain, [run.seed, 4, place], needs)
    pictures = run.tensor(np.stack([domain.crop(int(i), Crop()) for i in judge]))
    return learn, encode(codec, pictures, run.config.train_minibatch_size)


def _tensors(codec: Codec, net: SaliencyNet) -> ckpt.Tensors:
    nets = {"codec_ema": codec, "saliency_net": net}
    return {f"{name}.{k}": v for name, n in nets.items() for k, v in n.state_dict().items()}
