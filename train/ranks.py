"""Several processes that train one net: data parallelism over torch.distributed, and nothing at all with one process.

`torchrun --nproc-per-node N -m rfp train …` (or `accelerate launch`) starts N ranks. Each computes its share of every
batch; what is summed over a batch (gradients, loss scales, figures) is summed over the ranks, so that all of them hold
the same weights throughout and rank 0 may write for all. Sums are explicit and few, which is why there is neither a
DistributedDataParallel nor an Accelerator around the nets: those average each rank's own mean (wrong where shares are
uneven), rename the weights, and stand in the way of forward-mode derivatives.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..runtime.errors import RfpError, TrainingError, UsageError

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a rank waits for the others: rank 0 may embed or decode for hours. A lost rank is noticed at once."""


class AnotherRankFailed(RfpError):
    """Another rank has failed and said why; there is nothing to add."""

    exit_code = 1


def count() -> int:
    """How many ranks train together: 1 unless `together` says otherwise."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Its number on this machine: which of the machine's GPUs it takes."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is rank 0, which writes and reports for all."""
    return rank() == 0


def share(n: int) -> slice:
    """This rank's part of n items, in order; the parts differ by one item at most."""
    return slice(rank() * n // count(), (rank() + 1) * n // count())


@contextmanager
def together() -> Iterator[None]:
    """Join the ranks that a launcher has started, if it has. The first error of any rank ends all, and is said once.

    Raises:
        AnotherRankFailed: in every rank but the first to fail.
        TrainingError: another rank was lost without a word.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    store, here, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=here, world_size=size, timeout=PATIENCE)
    try:
        yield
    except Exception as e:
        if not isinstance(e, RfpError | RuntimeError | OSError | ValueError) or _first_to_fail(store):
            raise
        raise AnotherRankFailed("another rank failed") from e
    finally:
        dist.destroy_process_group()


def _first_to_fail(store: Any) -> bool:
    try:
        return bool(store.add("rfp/failures", 1) == 1)
    except RuntimeError:
        return False  # the launcher is gone, and with it whoever would read this


@contextmanager
def _listening() -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:
        lost = "another rank was lost; run the same command again to go on from the last checkpoint"
        raise TrainingError(f"rank {rank()}: {lost} ({str(e).splitlines()[0]})") from e


@torch.no_grad()
def add(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over all ranks, in one message. Each rank gets the same bits."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    with _listening():
        dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def mean(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its mean over all ranks."""
    add(tensors)
    for tensor in tensors if count() > 1 else []:
        tensor /= count()


def any_of(flag: bool) -> bool:
    """Whether it is so on any rank: the same answer on all."""
    votes = torch.tensor([float(flag)])
    add([votes])
    return bool(votes > 0)


def once(make: Callable[[], T]) -> T:
    """What rank 0 makes, handed to all."""
    made = [make() if first() else None]
    if count() > 1:
        with _listening():
            dist.broadcast_object_list(made)
    return made[0]  # type: ignore[return-value]


def barrier() -> None:
    """Wait until all ranks are here."""
    any_of(False)


@contextmanager
def in_turn() -> Iterator[None]:
    """Rank 0 first, then one rank of every other machine, then all others: whoever comes later finds caches filled."""
    turn = 0 if first() else 1 if local_rank() == 0 else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(2 - turn):
        barrier()


def fits(train_batch_size: int) -> None:
    """Raise UsageError where there are more ranks than pairs in a batch."""
    if train_batch_size < count():
        raise UsageError(
            f"train_batch_size {train_batch_size} is less than the {count()} ranks, which share each batch; "
            f"start fewer processes, or raise train_batch_size"
        )


def agree(what: str, here: object) -> None:
    """Raise UsageError unless all ranks see the same: a folder that only one machine has would part them."""
    if count() == 1:
        return
    seen: list[object] = [None] * count()
    with _listening():
        dist.all_gather_object(seen, here)
    for other, there in enumerate(seen):
        if there != seen[0]:
            raise UsageError(
                f"{what}: rank 0 sees {seen[0]}, rank {other} sees {there}; the run's folder and the data must be on "
                "a file system that every machine shares"
            )
