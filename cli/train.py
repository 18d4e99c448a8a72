"""`rfp train`: two folders to a run with checkpoints."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..runtime.errors import MissingExtraError, UsageError
from .paths import path

if TYPE_CHECKING:
    from ..train.job import Job


def train(
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            help="Preset by name, or a JSON file; if not given, the preset that suits the device and the pictures.",
        ),
    ] = None,
    domain0: Annotated[
        list[str] | None,
        typer.Option(
            "--domain0",
            "-d0",
            help="Folder, file, zip or video to turn from; repeatable. The one word `random` makes pictures from noise "
            "(a folder of that name is ./random).",
        ),
    ] = None,
    domain1: Annotated[
        list[str] | None, typer.Option("--domain1", "-d1", help="Folder, file, zip or video to turn into; repeatable.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-ckpt", help="Run or checkpoint to go on from.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Run one phase: codec, saliency or velocity. The rest may follow in the run."),
    ] = None,
    codec_checkpoint: Annotated[
        Path | None, typer.Option(help="Run or checkpoint to take a finished codec from, in place of phase 0.")
    ] = None,
    saliency_checkpoint: Annotated[
        Path | None, typer.Option(help="Run or checkpoint to take a finished classifier from, in place of phase 1.")
    ] = None,
    velocity_checkpoint: Annotated[
        Path | None, typer.Option(help="Run or checkpoint whose averaged velocity net phase 2 starts from, at step 0.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run's folder in --runs; made from the command if not given.")
    ] = None,
    runs: Annotated[Path, typer.Option(parser=path, help="Folder of all runs.")] = Path("runs"),
    dev: Annotated[bool, typer.Option("--dev", help="Small batches, frequent samples and logs.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Of every random draw; 0, or that of --checkpoint.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. velocity_net.model_channels=64; repeatable.")
    ] = None,
    log: Annotated[
        str, typer.Option(help="Loggers besides metrics.jsonl: tensorboard, wandb, or both with a comma.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve everything, print the plan, train nothing.")
    ] = False,
) -> None:
    """Learn to turn domain 0 into domain 1, without pairs; or noise into domain 1, with `--domain0 random`.

    Run the same command again to go on after an interruption. Ctrl-C saves first.
    """
    require_train()
    from ..train import ranks

    try:
        with ranks.together():
            given = {"codec": codec_checkpoint, "saliency": saliency_checkpoint, "velocity": velocity_checkpoint}
            parts = {phase: path.expanduser() for phase, path in given.items() if path is not None}
            job = resolve(config, domain0, domain1, checkpoint, run_id, runs, dev, device, seed, overrides, only, parts)
            lines = _train(replace(job, log=tuple(filter(None, log.split(",")))), dry_run)
    except ranks.AnotherRankFailed as e:
        raise typer.Exit(e.exit_code) from None
    for line in lines:
        typer.echo(line)


def _train(job: "Job", dry_run: bool) -> list[str]:
    """Plan or train, and what to print in the end: nothing but on the first of several ranks."""
    from ..train import ranks
    from ..train.plan import plan
    from ..train.run import Interrupted
    from ..train.training import train as run
    from .train_report import reporter

    with reporter() as report:
        if dry_run:
            lines = plan(job, report)
            return lines if ranks.first() else []
        try:
            run(job, report)
        except Interrupted:
            report.close()
            if ranks.first():
                typer.echo(f"rfp: interrupted and saved. To go on:\n  {_again(ranks.count())}", err=True)
            ranks.barrier()  # a launcher ends the others as soon as one has ended
            raise typer.Exit(130) from None
        return [str(job.folder)] if ranks.first() else []


def _again(processes: int) -> str:
    """The command that was given."""
    launch = ["rfp"]
    if processes > 1:
        launch = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", str(processes)), "-m", "rfp"]
    return shlex.join([*launch, *sys.argv[1:]])


def require_train() -> None:
    """Raise MissingExtraError where the packages for training are not installed."""
    from importlib.util import find_spec

    if missing := [m for m in ("torch", "torchvision", "pydantic", "safetensors", "scipy") if find_spec(m) is None]:
        raise MissingExtraError(f"training needs {', '.join(missing)}: pip install 'rfp[train]'")


def run_folder(runs: Path, name: str) -> Path:
    """The folder of a run's name. Raises UsageError where that leads elsewhere than right into `runs`."""
    folder = runs / name
    if folder.name in ("", "..") or folder.parent.resolve() != runs.resolve():
        raise UsageError(f"--run-id {name!r}: wanted the plain name of one folder in {runs}, such as zebras")
    return folder


def resolve(
    config: str | None,
    domain0: list[str] | None,
    domain1: list[str] | None,
    checkpoint: Path | None,
    run_id: str | None,
    runs: Path,
    dev: bool,
    device: str,
    seed: int | None,
    overrides: list[str] | None,
    only: str | None,
    parts: dict[str, Path],
) -> "Job":
    """What the options ask for. Raises UsageError, ConfigError, CheckpointError."""
    from ..train import checkpoint as ckpt
    from ..train.job import Job, config_of, default_run_id, read_run
    from ..train.reading import load_config, override, read_json

    start, folder, before = None, None, dict[str, Any]()
    named = None if run_id is None else run_folder(runs, run_id)
    if checkpoint is not None and parts:
        raise UsageError(
            f"--checkpoint goes on with a whole run, and --{next(iter(parts))}-checkpoint begins one with a part of "
            "another: give one or the other"
        )
    values = dict[str, Any]()
    if checkpoint is not None:
        start = ckpt.find(checkpoint)
        old = start.parent.parent if start.parent.name == "checkpoints" else None
        if old:
            before = read_run(old)
            folder = old if named is None or named.resolve() == old.resolve() else None
        if not config:  # a run's own config leaves open what its checkpoints have decided, as the command did
            own = folder / "config.json" if folder else None
            values = read_json(own) if own and own.is_file() else config_of(start)
        if folder and (found := ckpt.checkpoints(folder)) and start != found[-1]:
            raise UsageError(
                f"{folder} has a newer checkpoint than {start.name}; give --run-id NEW to branch off from this one"
            )
    inputs0, inputs1 = data_of(domain0, domain1, before)
    if start and not config:
        settings = override(values, overrides or [], dev, str(start))
    else:
        config = config or _config_for(named, inputs0, inputs1, device)
        settings = load_config(config, overrides, dev)
    seed = before.get("seed", 0) if seed is None else seed
    if folder is None:
        folder = named or runs / default_run_id(config or "run", settings, inputs0, inputs1, seed, parts)
    return Job(settings, inputs0, inputs1, folder, seed, device, start, only, parts)


def _config_for(
    folder: Path | None, inputs0: tuple[Path, ...] | Literal["random"], inputs1: tuple[Path, ...], device: str
) -> str:
    """The config of the run that is already in `folder`, or else the preset that suits, which is said."""
    from ..train import ranks
    from ..train.choice import suited
    from ..train.device import pick_device

    if folder and (own := folder / "config.json").is_file():
        return str(own)
    name, reason = suited(inputs0, inputs1, pick_device(device))
    if ranks.first():
        typer.echo(f"config: {name} ({reason}); -c takes another", err=True)
    return name


def data_of(
    domain0: list[str] | None, domain1: list[str] | None, before: dict[str, Any]
) -> tuple[tuple[Path, ...] | Literal["random"], tuple[Path, ...]]:
    """The inputs as given, or else those in the run.json of `before`. Raises UsageError."""
    return _domain0(domain0, before.get("domain0", [])), _paths("domain1", domain1 or before.get("domain1", []))


def _domain0(given: list[str] | None, before: list[str] | Literal["random"]) -> tuple[Path, ...] | Literal["random"]:
    if given == ["random"] or (not given and before == "random"):
        return "random"
    if given and "random" in given:
        raise UsageError("--domain0 random means noise, and stands alone; a folder of that name is ./random")
    return _paths("domain0", given or before)


def _paths(name: str, given: Sequence[str]) -> tuple[Path, ...]:
    from ..runtime.media import paths

    if not given:
        raise UsageError(f"give --{name}: a folder, file, zip or video (repeat it for several)")
    if not all(given):
        raise UsageError(f"--{name} is empty; wanted a folder, file, zip or video")  # Path("") would be this folder
    found = paths(given)
    if name == "domain1" and given == ["random"] and not found[0].exists():
        raise UsageError("--domain1 random: only domain 0 can be noise; the pictures to learn from are domain 1")
    return tuple({path.resolve(): path for path in found}.values())  # each of them once
