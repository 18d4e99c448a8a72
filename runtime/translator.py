"""Translation as a part of other programs: arrays in, arrays out, in their order."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from .bundle import Bundle, opened
from .codec import Codec, open_codec
from .errors import MediaError, UsageError
from .flow import DEFAULTS, Flow
from .images import in_order
from .manifest import Manifest
from .media import Media, read_image, upright_rgb
from .options import AS_IT_IS, FilmOptions, FlowOptions
from .pipeline import ahead
from .pixels import Uint8
from .plan import WRITABLE_VIDEOS
from .velocity import Velocity


class Translator:
    """Translates pictures and videos with one bundle.

    The bundle is opened at the first use, and again in each process: a translator may be pickled and sent to workers,
    as Ray's `map_batches` does (docs/ray_map_batches.py). On the CPU a result does not depend on what shares its batch.

        translator = Translator("BUNDLE", FlowOptions(steps=4))
        for made in translator.images(photos): ...
        translator.video("holiday.mp4", "holiday as a painting.mp4")

    Args:
        bundle: a loaded bundle, or where it is (in every process).
        flow: how pictures go through the net.
    """

    def __init__(self, bundle: Bundle | str | Path, flow: FlowOptions = DEFAULTS) -> None:
        self._bundle, self._flow = bundle, flow
        self._open: tuple[Velocity, Codec, Manifest] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def images(self, images: Iterable[Uint8 | Image.Image | str | Path]) -> Generator[Uint8, None, None]:
        """Yield the translation of each picture, in order, while a thread works on the next ones.

        Args:
            images: uint8 [H, W, 3] arrays (RGB), Pillow images or image files, of any sizes; neighbours of one size
                share a batch. It is read from another thread, a batch ahead.

        Yields:
            uint8 [H', W', 3], as large as the options say.

        Raises:
            BundleError, UsageError: the bundle or the options cannot be used.
            MediaError: a picture cannot be read or translated; those before it were yielded.
        """
        if isinstance(images, str | Path):
            raise UsageError(f"images is the one path {images}; wanted a list of pictures, such as [{str(images)!r}]")
        flow = self._new_flow()
        pictures = ((_pixels(image), None) for image in images)
        with closing(ahead(in_order(pictures, flow), 2, flow.stop)) as made:
            for pixels, _ in made:
                yield pixels

    def video(
        self,
        path: str | Path,
        out: str | Path,
        film: FilmOptions = AS_IT_IS,
        *,
        overwrite: bool = False,
        on_frames: Callable[[int, int | None], None] = lambda count, total: None,
    ) -> str:
        """Write the translation of a video to `out`, whole or not at all.

        Args:
            film: how it is cut, compared and encoded.
            overwrite: replace what is at `out` already.
            on_frames: called with (frames written, frames expected or None).

        Returns:
            What was left out, for a person to read; empty for nothing.

        Raises:
            BundleError: the bundle cannot be used.
            UsageError: an option out of range, or `out` is the source, is there already, or has an unknown suffix.
            MediaError: the source is damaged, or `out` cannot be written.
        """
        from .encoders import choose  # PyAV takes 50 ms to import
        from .video import translate_video

        source, target = Path(path), Path(out)
        if target.suffix.lower() not in WRITABLE_VIDEOS:
            raise UsageError(f"{target}: wanted a name that ends in {', '.join(sorted(WRITABLE_VIDEOS))}")
        if target.resolve() == source.resolve():
            raise UsageError(f"{target}: is the input too, and inputs are never overwritten; choose another name")
        if target.exists() and not overwrite:
            raise UsageError(f"{target}: there already; give overwrite=True, or another name")
        choose(film, target.suffix.lower())
        media = Media(source, "video", PurePosixPath(source.name))
        return translate_video(media, target, self._new_flow(), on_frames, film=film)

    def _new_flow(self) -> Flow:
        if self._open is None:
            loaded = opened(self._bundle, self._flow.precision, self._flow.device)
            if loaded.manifest.generative:
                raise UsageError(f"{loaded.path}: its domain 0 is noise: there is nothing to translate; see generate()")
            device, threads = self._flow.device, self._flow.threads
            self._open = Velocity(loaded, device, threads), open_codec(loaded, device, threads), loaded.manifest
        return Flow(*self._open, self._flow)


def _pixels(image: Uint8 | Image.Image | str | Path) -> Uint8:
    if isinstance(image, str | Path):
        return np.asarray(read_image(Path(image)))
    if isinstance(image, Image.Image):
        image = np.asarray(upright_rgb(image))
    if not isinstance(image, np.ndarray):
        raise MediaError(f"a picture is a {type(image).__name__}; wanted an array, a Pillow image or a path")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise MediaError(f"a picture of {image.dtype} {list(image.shape)}; wanted uint8 [H, W, 3]")
    return image
