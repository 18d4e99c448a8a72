"""Reading configs: presets by name, `--dev`, `--set`, and every mistake at once with the nearest valid key."""

import difflib
import json
import os
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..runtime.errors import ConfigError
from ..runtime.media import paths
from .config import RFPix2pixModel, nets
from .net_config import DoesNotFit, Strict

PRESETS = Path(__file__).parent.parent / "configs"

DEV = {
    "train_batch_size": 8,
    "train_minibatch_size": 4,
    "log_every": 1,
    "sample_every": 25,
    "checkpoint_every": 25,
    "warmup_images": 80,
}
"""What `--dev` changes, before `--set`."""


def presets() -> list[str]:
    """Names of the configs that ship with rfp."""
    return sorted(p.stem for p in PRESETS.glob("*.json") if p.stem != "schema")


def load_config(name_or_path: str, overrides: list[str] | None = None, dev: bool = False) -> RFPix2pixModel:
    """Read a preset by name or a JSON file by path, apply `--dev` and `--set KEY=VALUE`, and validate.

    Raises:
        ConfigError: no such config, not JSON, or mistakes in it (all of them, each with its path).
    """
    (path,) = paths([name_or_path])
    if os.path.isdir(path) and name_or_path not in presets():  # noqa: PTH112
        raise ConfigError(f"{path}: is a folder; wanted a config file or a preset: {', '.join(presets())}")
    if not os.path.isfile(path) or path.stem == "schema":  # noqa: PTH113 (pathlib's raises for a name too long)
        if name_or_path not in presets():
            near = _nearest(name_or_path, presets()) or "."
            raise ConfigError(f"{name_or_path}: neither a file nor a preset{near} Presets: {', '.join(presets())}")
        path = PRESETS / f"{name_or_path}.json"
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin files with a mark
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from e
    twice: list[str] = []
    return override(parse_json(text, str(path), twice), overrides or [], dev, str(path), twice)


def override(
    values: dict[str, Any], overrides: list[str], dev: bool, where: str, mistakes: Sequence[str] = ()
) -> RFPix2pixModel:
    """Apply `--dev`, then each `--set KEY=VALUE`, and validate. Raises ConfigError, with `mistakes` found before."""
    if dev:
        values |= DEV
    malformed = [*mistakes]
    types_first = sorted(overrides, key=lambda assignment: not assignment.partition("=")[0].endswith(".type"))
    malformed += [mistake for assignment in types_first if (mistake := _apply(values, assignment))]
    return validate(values, f"{where} with --set" if overrides else where, malformed)


def parse_json(text: str, where: str, twice: list[str] | None = None) -> dict[str, Any]:
    """A JSON object; a key given twice is a mistake, not a silent choice: raised, or added to the list `twice`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = [f"{k}: given twice" for k, n in Counter(k for k, _ in pairs).items() if n > 1]
        if found and twice is None:
            raise ConfigError(f"{where}: {', '.join(sorted(found))}")
        (twice if twice is not None else []).extend(found)
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as e:
        raise ConfigError(f"{where}: line {e.lineno}, column {e.colno}: not JSON: {e.msg}") from e
    except (RecursionError, ValueError) as e:  # ValueError: a number of thousands of digits
        raise ConfigError(f"{where}: not a config: {e}") from e
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {type(values).__name__}")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError."""
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from e


def _apply(values: dict[str, Any], assignment: str) -> str | None:
    """Put KEY=VALUE into the values, or say what is wrong with it."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        return f"--set {assignment}: expected KEY=VALUE, e.g. velocity_net.model_channels=64"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            return f"--set {assignment}: {parent} has no keys of its own"
        values = child
    if parents and last == "type" and values.get("type", "UNet") != value:
        values.clear()  # what the config says of one net says nothing of another
    values[last] = value
    return None


def validate(values: dict[str, Any], where: str = "config", mistakes: Sequence[str] = ()) -> RFPix2pixModel:
    """Validate a parsed config. Raises ConfigError listing every mistake, after those found before."""
    lines = [*mistakes]
    try:
        config = RFPix2pixModel.model_validate(values)
    except ValidationError as e:
        lines += _mistakes(values, e)
    if lines:
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{where}: {count}\n" + "\n".join(f"  {line}" for line in lines))
    return config


def _mistakes(values: dict[str, Any], error: ValidationError | None) -> list[str]:
    """All of them. pydantic compares keys with one another only where each is right by itself, so it is asked again
    without the wrong ones; what then does not fit counts only if it is not about those."""
    lines: list[str] = []
    wrong: set[tuple[str, ...]] = set()
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    while error is not None:
        found, before = set[tuple[str, ...]](), len(wrong)
        for each in error.errors():
            if isinstance(misfit := each.get("ctx", {}).get("error"), DoesNotFit):
                here = _key(each["loc"])
                about = [({(*here, key) for key in keys}, text) for keys, text in misfit.mistakes]
                lines += [".".join([*here, text]) for keys, text in about if not _touch(keys, wrong)]
                found |= set[tuple[str, ...]]().union(*(keys for keys, _ in about))
            else:
                lines.append(_explain(each))
                found.add(_key(each["loc"]))
        wrong |= found
        for *parents, last in filter(None, found):
            if isinstance(holder := values.get(parents[0]) if parents else values, dict):
                holder.pop(last, None)
        error = _error(values) if len(wrong) > before else None
    return lines


def _touch(keys: set[tuple[str, ...]], wrong: set[tuple[str, ...]]) -> bool:
    """Whether one of the keys is wrong by itself, or holds a key that is."""
    return any(path[: len(key)] == key for key in keys for path in wrong)


def _error(values: dict[str, Any]) -> ValidationError | None:
    try:
        RFPix2pixModel.model_validate(values)
    except ValidationError as e:
        return e
    return None


def _key(loc: tuple[Any, ...]) -> tuple[str, ...]:
    """The path of the key that an error is about, without the union's tag and without places in lists."""
    names = [part for i, part in enumerate(loc) if not (i == 1 and part in MODELS)]
    return tuple(takewhile(lambda part: isinstance(part, str), names))


def _explain(error: Any) -> str:
    names = [part for i, part in enumerate(error["loc"]) if not (i == 1 and part in MODELS)]  # the union's tag
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in names).lstrip(".")
    match error["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key{_nearest(str(names[-1]), _keys_at(error['loc'][:-1]))}"
        case "union_tag_invalid" | "literal_error":
            allowed = [
                str(v).strip("' ")
                for v in (error["ctx"].get("expected_tags") or error["ctx"]["expected"])
                .replace(" or ", ", ")
                .split(",")
            ]
            found = error["ctx"].get("tag", error["input"])
            kind = ".type" if error["type"] == "union_tag_invalid" else ""
            return f"{path}{kind}: {found!r} is not one of {', '.join(allowed)}{_nearest(str(found), allowed)}"
        case "union_tag_not_found":
            return f"{path}.type: missing; one of {', '.join(sorted(nets()[path]))}"
        case "model_type" | "model_attributes_type" if path in nets():
            kinds = " or ".join(f'{{"type": "{tag}"}}' for tag in nets()[path])
            return f"{path}: found {error['input']!r}; wanted an object such as {kinds}"
        case "value_error":
            return f"{path or 'config'}: {error['ctx']['error']}"
        case _:
            return f"{path}: {error['msg'][0].lower() + error['msg'][1:]}, found {error['input']!r}"


MODELS: dict[Any, type[Strict]] = {tag: model for choices in nets().values() for tag, model in choices.items()}


def _keys_at(loc: tuple[Any, ...]) -> list[str]:
    model = MODELS.get(loc[-1], RFPix2pixModel) if loc else RFPix2pixModel
    return [field.alias or name for name, field in model.model_fields.items()]


def _nearest(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
