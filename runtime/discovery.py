"""The one discovery of media, for training and for translating: of all that is found only names are held."""

import os
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar, overload

from .errors import MediaError, UsageError
from .media import ARCHIVE_SUFFIXES, MAX_MEMBERS, Media, kind_of, open_zip

Item = TypeVar("Item", covariant=True)
Other = TypeVar("Other")


class Made(Sequence[Item], Generic[Item]):
    """Items that are made each time they are asked for, `make(number)` for each of `numbers`."""

    def __init__(self, make: Callable[[int], Item], numbers: Sequence[int]) -> None:
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, i: int) -> Item: ...
    @overload
    def __getitem__(self, i: slice) -> "Made[Item]": ...
    def __getitem__(self, i: int | slice) -> "Item | Made[Item]":
        return Made(self._make, self._numbers[i]) if isinstance(i, slice) else self._make(self._numbers[i])

    def kept(self, wanted: Callable[[Item], bool]) -> "Made[Item]":
        """Those of which `wanted` is true."""
        return self.at(i for i, item in enumerate(self) if wanted(item))

    def at(self, places: Iterable[int]) -> "Made[Item]":
        """Those at these places, in their order."""
        return Made(self._make, array("L", (self._numbers[i] for i in places)))

    def into(self, change: "Callable[[Item], Other]") -> "Made[Other]":
        """What `change` makes of each, when it is asked for."""
        return Made(lambda number: change(self._make(number)), self._numbers)


@dataclass(frozen=True)
class _Place:
    """Where names are from: a folder, or a zip that stands at `relative` below the input."""

    path: Path
    relative: PurePosixPath | None = None

    def media(self, name: str) -> Media:
        if self.relative is None:
            path, relative, member = self.path / name, PurePosixPath(name), None
        else:
            path, relative, member = self.path, self.relative.with_suffix("") / name.replace("\\", "/"), name
        kind = kind_of(relative.suffix)
        assert kind is not None
        return Media(path, kind, relative, member)


class _Names:
    """The names of all media, one after the other as bytes: 100,000 of 20 letters take 4 MB, and as objects 100."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("Q", [0])
        self._places: list[_Place] = []
        self._place_of = array("L")

    def add(self, place: _Place, names: Iterable[str]) -> None:
        if not self._places or self._places[-1] != place:
            self._places.append(place)
        for name in names:
            self._text += name.encode("utf-8", "surrogatepass")
            self._ends.append(len(self._text))
            self._place_of.append(len(self._places) - 1)

    def __len__(self) -> int:
        return len(self._place_of)

    def media(self, number: int) -> Media:
        name = self._text[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")
        return self._places[self._place_of[number]].media(name)


def natural_key(text: str) -> str:
    """Sort key that puts `frame2` before `frame10`, upper and lower case together.

    A number is its length without leading zeros in two letters, its digits, and fewer zeros after more.
    """
    parts = []
    for part in re.split(r"([0-9]+)", text.casefold()):
        digits = part.lstrip("0")
        if part[:1].isdigit() and part.isascii() and len(part) < 4000:
            size, zeros = len(digits), min(len(part) - len(digits), 126)
            parts.append(f"\1{chr(size >> 6)}{chr(size & 63)}{digits}{chr(127 - zeros)}")
        elif part:
            parts.append("\2" + part)
    return "".join(parts)


def discover(
    inputs: Iterable[Path], on_bad: Callable[[MediaError], None] | None = None, may_be_empty: bool = False
) -> Made[Media]:
    """Find every image and video in folders (recursive), files and zips, each input in natural order.

    Hidden files, `__MACOSX`, and zip members with absolute or `..` names are passed over. Brackets and other
    pattern characters in paths are plain characters.

    Args:
        on_bad: called with the error of each zip that cannot be read, which is then passed over, and of each link that
            leads nowhere, which is passed over in any case.
        may_be_empty: folders may hold nothing.

    Raises:
        UsageError: an input does not exist, is of no known kind, or holds no image or video.
        MediaError: a zip cannot be read, and there is no `on_bad`.
    """
    found = _Names()
    for path in inputs:
        if not os.path.exists(path):  # noqa: PTH110 (pathlib's raises for a name too long)
            raise UsageError(f"{path}: no such file or folder")
        if not path.is_dir() and not path.is_file():  # a pipe would be waited for, and a device never ends
            raise UsageError(f"{path}: is neither a file nor a folder")
        before, bad = len(found), False
        try:
            dangling = _reported(path, on_bad)
            folder, names = (path, _in_folder(path, dangling)) if path.is_dir() else (path.parent, [path.name])
        except OSError as e:
            raise UsageError(f"{e.filename or path}: cannot be read ({e.strerror or e}); is it yours to read?") from e
        for name in names:
            suffix = PurePosixPath(name).suffix
            if kind_of(suffix):
                found.add(_Place(folder), [name])
            elif suffix.lower() in ARCHIVE_SUFFIXES:
                try:
                    found.add(_Place(folder / name, PurePosixPath(name)), _in_zip(folder / name))
                except MediaError as e:
                    if on_bad is None:
                        raise
                    bad = True
                    on_bad(e)
        if len(found) == before and not bad and not (may_be_empty and path.is_dir()):
            wanted = "png, jpg, webp, gif, bmp, tiff; mp4, mov, mkv, webm, avi, …; zip"
            what = "holds no" if path.is_dir() or path.suffix.lower() in ARCHIVE_SUFFIXES else "is not an"
            raise UsageError(f"{path}: {what} image, video or zip that rfp knows ({wanted})")
    return Made(found.media, range(len(found)))


def _reported(folder: Path, on_bad: Callable[[MediaError], None] | None) -> Callable[[str], None]:
    """What is done with the name of a link below a folder that leads nowhere."""

    def report(name: str) -> None:
        if on_bad is not None and kind_of(PurePosixPath(name).suffix):
            on_bad(MediaError(f"{folder / name}: is a link that leads to no file"))

    return report


def _in_folder(folder: Path, on_dangling: Callable[[str], None]) -> list[str]:
    """The files below a folder, `a/b.png`, in natural order."""
    stack, seen, files = [""], {os.path.realpath(folder)}, list[str]()
    while stack:
        below = stack.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if os.path.isdir(entry):  # noqa: PTH112 (the entry's own raises for a link that goes round in a circle)
                    if (real := os.path.realpath(entry)) not in seen:  # a link back up would go round for ever
                        seen.add(real)
                        stack.append(f"{below}{entry.name}/")
                elif os.path.isfile(entry):  # noqa: PTH113
                    files.append(f"{below}{entry.name}")
                elif os.path.islink(entry):  # noqa: PTH114
                    on_dangling(f"{below}{entry.name}")
    return _sorted(files)


def _in_zip(path: Path) -> list[str]:
    """The names of the members that are images and videos, in natural order."""
    try:
        with open_zip(path) as archive:
            infos = archive.infolist()
    except Exception as e:  # zipfile raises half a dozen kinds on damaged lists
        raise MediaError(f"{path}: not a readable zip: {str(e)[:300] or type(e).__name__}") from e
    if len(infos) > MAX_MEMBERS:
        raise MediaError(f"{path}: {len(infos)} members, more than the {MAX_MEMBERS} that are read")
    if sum(i.compress_size for i in infos) > path.stat().st_size:
        raise MediaError(f"{path}: its members lie over one another, as in a zip bomb; not read")
    return _sorted({i.filename for i in infos if i.filename and not i.is_dir() and _wanted(i.filename)})


def _wanted(member: str) -> bool:
    inside = PurePosixPath(member.replace("\\", "/"))
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in inside.parts)  # `..` too
    return not (hidden or inside.is_absolute() or ":" in member) and kind_of(inside.suffix) is not None


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(sorted(names), key=natural_key)  # names of one key, which differ in case, by their letters
