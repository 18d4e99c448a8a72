"""`rfp info`: what a bundle, a checkpoint or a run is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..runtime.files import json_text
from .number import counted
from .report import one_line


def info(
    path: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE|CHECKPOINT|RUN", help="Bundle folder or .onnx, .safetensors, or run folder."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Say what a bundle, a checkpoint or a run is. Needs no torch.

    Exits with 1 if a graph of the bundle is missing or not as it was exported.
    """
    from ..runtime.description import describe

    values = describe(path)
    typer.echo(json_text(values, indent=2) if as_json else "\n".join(_lines(values)))
    graphs = values.get("manifest", {}).get("graphs", [])
    if any(graph.get("state", "whole") != "whole" for graph in graphs):
        raise typer.Exit(1)


def _lines(values: dict[str, Any]) -> list[str]:
    match values["kind"]:
        case "bundle" | "graph":
            return [f"{one_line(values['path'])}: a {values['kind']}", *_manifest(values["manifest"])]
        case "checkpoint":
            return [f"{one_line(values['path'])}: a checkpoint", *_checkpoint(values)]
        case _:
            lines = [f"{one_line(values['path'])}: a run", _row("checkpoints", ", ".join(values["checkpoints"]))]
            if values["last_metrics"]:
                figures = (
                    f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values["last_metrics"].items()
                )
                lines.append(_row("last metrics", ", ".join(figures)))
            return [*lines, *_checkpoint(values["newest"])]


def _manifest(manifest: dict[str, Any]) -> list[str]:
    training = manifest["training"]
    latent, counts = manifest.get("latent"), {"step": "step", "images": "pair"}
    rows = {
        "name": manifest["name"],
        "domains": _domains(manifest["domains"], manifest.get("generative", False)),
        "pictures": f"{manifest['image_size']} px in training; sides are multiples of {manifest['multiple']}",
        "latents": f"{latent['channels']} channels at 1/{latent['factor']} of the size" if latent else "",
        "alignment": _alignment(manifest.get("alignment") or []),
        "steps": f"{counted(manifest['default_steps'], 'Euler step')} by default",
        "trained": ", ".join(counted(training[k], what) for k, what in counts.items() if k in training),
        "licence": manifest["licence"] or "none given",
        "provenance": manifest["provenance"] or "none given",
        "made by": f"rfp {manifest['rfp_version']}, manifest format {manifest['format_version']}",
    }
    return [*(_row(k, v) for k, v in rows.items() if v), *map(_graph, manifest["graphs"])]


def _alignment(a: list[float]) -> str:
    bent = f", bent by up to {max(map(abs, a[6:])):.2f} of half a side" if a[6:] else ""
    return ", ".join(f"{n:.2f}" for n in a[:6]) + bent


def _graph(graph: dict[str, Any]) -> str:
    parity, size = graph.get("parity", {}), graph["bytes"] + (graph.get("data") or {"bytes": 0})["bytes"]
    known = {"psnr", "grey_levels"} <= parity.keys()
    figures = (
        f"{parity['psnr']:.1f} dB, {counted(round(parity['grey_levels']), 'grey level')} to PyTorch" if known else ""
    )
    remarks = [
        "BELOW ITS FLOOR" if graph["below_floor"] else "",
        graph["state"].upper() if graph.get("state", "whole") != "whole" else "",
    ]
    about = f"{graph['role']}, {graph['format']} {graph['precision']}, {size / 1e6:.1f} MB"
    return _row(graph["file"], ", ".join(part for part in (about, figures, *remarks) if part))


def _checkpoint(values: dict[str, Any]) -> list[str]:
    config = values["config"]
    parts = (f"{name} {part['numbers']:,}" for name, part in values["parts"].items() if name != "samples")
    held = {"codec_ema": "codec", "velocity_ema": "velocity_net", "saliency_net": "saliency_net"}
    nets = [config.get(net) for part, net in held.items() if part in values["parts"]]
    rows = {
        "domains": _domains(values["domains"], values["generative"]),
        "phase": f"{values['phase']}, step {values['step']:,}, seed {values['seed']}",
        "nets": ", ".join(str(net["type"]) for net in nets if isinstance(net, dict) and "type" in net),
        "pictures": f"{config.get('max_size')} px",
        "numbers": ", ".join(parts),
        "size": f"{values['bytes'] / 1e6:.1f} MB",
    }
    return [_row(k, v) for k, v in rows.items() if v]


def _domains(domains: list[str], generative: bool) -> str:
    return f"{'noise' if generative else domains[0]} -> {domains[1]}"


def _row(name: str, value: str) -> str:
    """Control characters, which a stranger's file may hold, are not for the terminal."""
    return "".join(c if c.isprintable() else "�" for c in f"  {name:<20} {value}")
