"""`rfp reflow` and `rfp distill`: from a trained flow to one that needs fewer steps."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import UsageError
from .train import data_of, require_train, run_folder

if TYPE_CHECKING:
    from ..train.job import Job
    from ..train.run import Reporter

Run = Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="Run (its newest checkpoint) or checkpoint file.")]
Pairs = Annotated[int, typer.Option(help="Pairs that the flow makes of the run's own pictures, 128 at a time.")]
From = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The pairs/ of another such run, in place of making pairs.")
]
Images = Annotated[int | None, typer.Option(help="Pairs to train on, in all; half of the run's if not given.")]
Making = Annotated[int | None, typer.Option(help="Euler steps that make the pairs; the run's own if not given.")]
Id = Annotated[str | None, typer.Option(help="Name of the new run, beside the old one; made from it if not given.")]
Input0 = Annotated[list[str] | None, typer.Option("--domain0", "-d0", help="Where domain 0 is now; repeatable.")]
Input1 = Annotated[list[str] | None, typer.Option("--domain1", "-d1", help="Where domain 1 is now; repeatable.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the new run's config; repeatable.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def reflow(
    source: Run,
    steps: Annotated[int, typer.Option(help="Euler steps that the new run's export takes by default.")] = 4,
    pairs: Pairs = 8192,
    pairs_from: From = None,
    images: Images = None,
    making_steps: Making = None,
    run_id: Id = None,
    domain0: Input0 = None,
    domain1: Input1 = None,
    device: Device = "auto",
    overrides: Set = None,
) -> None:
    """Train the next flow on pairs that a trained one makes: its paths are straighter, so fewer steps do.

    The new run begins with the old one's weights and is exported as any other. Run the same command again to go on
    after an interruption, also of making the pairs.
    """
    _train(source, steps, False, pairs, pairs_from, images, making_steps, run_id, domain0, domain1, device, overrides)


def distill(
    source: Run,
    steps: Annotated[int, typer.Option(help="Euler steps of the new run: 1, 2 or 4.")] = 1,
    pairs: Pairs = 8192,
    pairs_from: From = None,
    images: Images = None,
    making_steps: Making = None,
    run_id: Id = None,
    domain0: Input0 = None,
    domain1: Input1 = None,
    device: Device = "auto",
    overrides: Set = None,
) -> None:
    """Teach a copy of a trained flow to arrive in 1, 2 or 4 steps where the flow arrives in many.

    Three quarters of the pairs teach the way there, one the way back. The bundle of the new run takes that many steps
    by default. Run the same command again to go on after an interruption, also of making the pairs.
    """
    if steps not in (1, 2, 4):
        raise UsageError(f"--steps is {steps}; wanted 1, 2 or 4")
    _train(source, steps, True, pairs, pairs_from, images, making_steps, run_id, domain0, domain1, device, overrides)


def _train(
    source: Path,
    steps: int,
    few: bool,
    pairs: int,
    pairs_from: Path | None,
    images: int | None,
    making_steps: int | None,
    run_id: str | None,
    domain0: list[str] | None,
    domain1: list[str] | None,
    device: str,
    overrides: list[str] | None,
) -> None:
    require_train()
    from ..train import ranks
    from ..train.run import Interrupted
    from ..train.training import train
    from .train_report import reporter

    for name, value in (("steps", steps), ("pairs", pairs), ("images", images), ("making-steps", making_steps)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; wanted 1 or more")
    try:
        with ranks.together(), reporter() as report:
            job = _job(source.expanduser(), steps, few, images, run_id, domain0, domain1, device, overrides)
            try:
                inputs = _pairs(job, making_steps, pairs, pairs_from, report)
                inputs0 = job.inputs0 if isinstance(job.inputs0, str) else (inputs[0],)
                train(replace(job, inputs0=inputs0, inputs1=(inputs[1],)), report)
            except (Interrupted, KeyboardInterrupt) as e:
                report.close()
                made = f"; pairs, all but the last 128 at most, are kept in {pairs_from or job.folder / 'pairs'}"
                saved = " and saved" if isinstance(e, Interrupted) else made
                typer.echo(f"rfp: interrupted{saved}; the same command goes on from here", err=True)
                raise typer.Exit(130) from None
    except ranks.AnotherRankFailed as e:
        raise typer.Exit(e.exit_code) from None
    typer.echo(str(job.folder))


def _job(
    source: Path,
    steps: int,
    few: bool,
    images: int | None,
    run_id: str | None,
    domain0: list[str] | None,
    domain1: list[str] | None,
    device: str,
    overrides: list[str] | None,
) -> "Job":
    """The new training, still with the old one's pictures as its inputs."""
    from ..train import checkpoint as ckpt
    from ..train.job import Job, read_run
    from ..train.reading import override, read_json
    from ..train.reflow import successor

    start = ckpt.find(source)
    old = start.parent.parent if start.parent.name == "checkpoints" else start.with_suffix("")
    before = read_run(old)
    checkpoint = ckpt.load(start)
    checkpoint.need_velocity()
    name = f"{old.name}-{f'distilled-{steps}' if few else 'reflowed'}" if run_id is None else run_id
    folder = run_folder(old.parent, name)
    values = successor(checkpoint.config, steps, few, images)
    if (own := folder / "config.json").is_file():  # a run that goes on for longer rises as it did
        values["warmup_images"] = read_json(own).get("warmup_images", 0)
    config = override(values, overrides or [], False, f"{start}")
    inputs0, inputs1 = data_of(domain0, domain1, before)
    parts = {"velocity": start}
    if checkpoint.config.codec.latents:
        parts["codec"] = start
    return Job(config, inputs0, inputs1, folder, checkpoint.seed, device, parts=parts)


def _pairs(job: "Job", steps: int | None, count: int, made: Path | None, report: "Reporter") -> tuple[Path, Path]:
    from ..train import checkpoint as ckpt
    from ..train import ranks
    from ..train.device import pick_device
    from ..train.domains import Domain, open_domain
    from ..train.frame_cache import FrameCache
    from ..train.noise import noise_domain
    from ..train.reflow import Source, made_pairs, make_pairs

    if made is not None:
        return made_pairs(made.expanduser())
    folder = job.folder / "pairs"
    if ranks.first():
        checkpoint = ckpt.load(job.parts["velocity"])
        config = checkpoint.config
        opened = [
            noise_domain(config, job.seed)
            if isinstance(inputs, str)
            else open_domain(inputs, config.max_size, config.cache_megabytes << 20, report.note, FrameCache.of(config))
            for inputs in (job.inputs0, job.inputs1)
        ]
        if isinstance(opened[0], Domain):
            opened[0].align(config.moves)
        steps = steps or config.num_inference_steps
        source = Source(job.parts["velocity"], checkpoint, opened[0], opened[1], steps, job.seed)  # type: ignore[arg-type]
        make_pairs(source, folder, count, pick_device(job.device), report)
    ranks.barrier()
    return made_pairs(folder)
