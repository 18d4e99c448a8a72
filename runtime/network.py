"""One exported graph on a device, computed by ONNX Runtime."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import cache, cached_property
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from .errors import BundleError, MediaError, OutOfMemoryError, UsageError
from .norms import GIVEN, GIVEN_PLACE, MEASURED, SHARE, Norms, opened_up
from .pixels import Float

_FULL = ("out of memory", "failed to allocate", "bad_alloc", "bad allocation", "alloc_failed")
"""What ONNX Runtime, CUDA, cuBLAS, cuDNN and torch's MPS say where memory runs out, in lower case."""
_CUDA = {"cudnn_conv_algo_search": "HEURISTIC"}
"""By default ONNX Runtime tries all of cuDNN's convolutions for every size that it has not seen, and a folder of photos
has many: 634 ms a size for 1.9, and no slower afterwards, as PaddleX measured (pull request 5057). Not run here."""
DEVICES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}


def open_session(
    model: bytes,
    path: Path,
    threads: int = 0,
    provider: str = "CPUExecutionProvider",
    data: Mapping[str, bytes] = MappingProxyType({}),
) -> Any:
    """An onnxruntime.InferenceSession over a serialised graph; `threads` 0 means one for each core.

    The graph is passed as bytes: they are the bytes whose sha256 was checked, and ONNX Runtime then reads no other
    file for it (external data, absolute or relative, is refused) than those in `data`, given by name and content.

    Raises:
        BundleError: the graph is damaged, or needs external data or operators that are not there.
        UsageError: the provider is there but does not start.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    if data:
        options.add_external_initializers_from_files_in_memory(
            list(data), list(data.values()), [*map(len, data.values())]
        )
    # Of a graph in memory, names of external data are taken below the current folder: here nothing lies below.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the codecs need the cores between calls
    providers: list[Any] = [provider] if provider == DEVICES["cpu"] else [provider, DEVICES["cpu"]]
    missing = ""
    if provider == DEVICES["cuda"]:
        ort.set_default_logger_severity(4)
        with redirect_stdout(StringIO()) as said:  # where it prints what it does not find
            ort.preload_dlls()  # CUDA's libraries may have come with pip
        missing = said.getvalue().partition("\n")[0]
        providers[0] = provider, _CUDA
    try:
        session = ort.InferenceSession(model, options, providers=providers)
        _ = (
            session.get_modelmeta().custom_metadata_map,
            [v.name for v in (*session.get_inputs(), *session.get_outputs())],
        )
    except Exception as e:  # ONNX Runtime's errors share no base below Exception; a text that is no UTF-8 is one more
        raise BundleError(f"{path}: ONNX Runtime cannot load this graph ({_first_line(e)}); export it again") from e
    if provider not in session.get_providers():  # ONNX Runtime only logs it and goes on with the CPU
        why = missing or "is its driver or library missing?"
        raise UsageError(f"{provider} could not start ({why}); --device cpu works everywhere")
    return session


class Network:
    """Batches through one graph: float32 [B, C, H, W] → float32 [B, C', H', W'].

    On the CPU every image of a batch is a call of its own, so a result never depends on its batch. With as many images
    as cores, or several threads at `work`, each core runs one call at one thread: 1.2 times as fast as one call on all
    threads, 1.7 times as fast as one by one (64 px, 2 cores: benchmarks/RESULTS.md). Else one call has all threads.

    Args:
        model, path: the graph, and its file for messages.
        data: contents of the files that hold its weights, by name, where it does not hold them itself.
        threads: on the CPU; "auto" is one for each core that this process may use.
        takes, gives: names of the inputs and of the output with their number of axes; the first input is the batch, the
            others are shared by it.
        what: what the graph is, for messages.

    Raises:
        UsageError: a device that is not there.
        BundleError: a graph that cannot be loaded, or takes and gives something else.
    """

    def __init__(
        self,
        model: bytes,
        path: Path,
        device: str,
        takes: dict[str, int],
        gives: dict[str, int],
        what: str,
        data: Mapping[str, bytes] = MappingProxyType({}),
        threads: int | str = "auto",
    ) -> None:
        self._data = data
        self._model, self._path, self._takes, self._what = model, path, takes, what
        (self._gives,) = gives
        self.device = choose_device(device)
        self.cores = threads if isinstance(threads, int) else cores()
        self._lock, self._at_work = threading.Lock(), 0
        found = {"takes": self._wide.get_inputs(), "gives": self._wide.get_outputs()}
        wanted = {"takes": _tensors(takes), "gives": _tensors(gives)}
        if {side: {v.name: (v.type, len(v.shape)) for v in values} for side, values in found.items()} != wanted:
            raise BundleError(
                f"{path}: not {_a(what)} graph: it takes {_said(found['takes'])} and gives "
                f"{_said(found['gives'])}; wanted {_axes(takes)} to {_axes(gives)}, all float32; export it again"
            )

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around a thread's calls: while several are inside, each call takes one core, and the last one all again."""
        with self._lock:
            self._at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self._at_work -= 1

    def __call__(self, x: Float, *shared: Float, norms: Norms | None = None, factor: int = 1) -> Float:
        """With `norms`, x is a tile, [1, C, H, W], normalised by what is known there; `factor` px a side of its values.

        Raises:
            MediaError: the graph cannot take this size, or memory runs out.
        """
        if norms is not None and self._opened[1]:
            return self._tile(norms, factor, x, *shared)
        if self.device != "cpu":
            return self._run(self._wide, x, *shared)
        images = [x[i : i + 1] for i in range(len(x))]
        if len(x) < self.cores or self.cores == 1:
            session = self._narrow if self._at_work > 1 and self.cores > 1 else self._wide
            out = [self._run(session, image, *shared) for image in images]
            return out[0] if len(out) == 1 else np.concatenate(out)
        return np.concatenate(list(self._pool.map(lambda image: self._run(self._narrow, image, *shared), images)))

    @cached_property
    def _wide(self) -> Any:
        return open_session(self._model, self._path, self.cores, DEVICES[self.device], self._data)

    @property
    def session(self) -> Any:
        """The InferenceSession on the device, with all threads."""
        return self._wide

    @cached_property
    def _opened(self) -> tuple[Any, int, bool]:
        """A session with all threads whose norms take statistics, their number, and whether it takes a place."""
        model, count, placed = opened_up(self._model)
        device = DEVICES[self.device]
        return open_session(model, self._path, self.cores, device, self._data) if count else None, count, placed

    @cached_property
    def _narrow(self) -> Any:
        return open_session(self._model, self._path, 1, data=self._data)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.cores, self._what)

    def _run(self, session: Any, *inputs: Float) -> Float:
        return self._all(session, [self._gives], dict(zip(self._takes, inputs, strict=True)))[0]

    def _tile(self, norms: Norms, factor: int, *inputs: Float) -> Float:
        session, count, placed = self._opened
        known = norms.known()
        feeds = dict(zip(self._takes, inputs, strict=True)) | {SHARE: np.array([known is not None], np.float32)}
        for i in range(count):
            feeds[GIVEN.format(i)] = known[i] if known else np.zeros((1, 1, 2), np.float32)
        if placed:
            rows, columns = inputs[0].shape[2:]
            feeds[GIVEN_PLACE] = norms.frame.place(rows, columns, factor)
        out, *measured = self._all(session, [self._gives, *(MEASURED.format(i) for i in range(count))], feeds)
        norms.add(measured)
        return out

    def _all(self, session: Any, wanted: list[str], feeds: dict[str, Float]) -> list[Float]:
        try:
            out: list[Float] = session.run(wanted, feeds)
        except Exception as e:
            raise failure(self._what, next(iter(feeds.values())).shape, e) from e
        return out


def failure(what: str, shape: tuple[int, ...], error: Exception) -> MediaError:
    """What to raise where a graph failed on an input [B, C, H, W]."""
    reason = _first_line(error)
    kind = OutOfMemoryError if memory_ran_out(error) else MediaError
    return kind(f"the {what} graph failed at {shape[3]}×{shape[2]} ({reason}); try a smaller --size, or --tile 256")


def memory_ran_out(error: Exception) -> bool:
    """Whether that is why ONNX Runtime or torch failed; of their many errors few have a type that says so."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _FULL)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(device: str) -> str:
    """`auto` → cuda where ONNX Runtime has it and it starts, else cpu; one asked for by name is that or an error."""
    import onnxruntime as ort

    available: Sequence[str] = ort.get_available_providers()
    if device == "auto":
        return "cuda" if DEVICES["cuda"] in available and not cuda_problem() else "cpu"
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is not known; wanted auto, {', '.join(DEVICES)}")
    if DEVICES[device] not in available:
        install = {
            "cuda": "; `pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'` brings it",
            "coreml": "; it comes with `pip install onnxruntime` on a Mac",
        }
        raise UsageError(
            f"device {device!r} is not in this ONNX Runtime ({', '.join(available)}){install.get(device, '')}"
        )
    return device


@cache
def cuda_problem() -> str:
    """Why CUDA does not start here, as without a driver, where ONNX Runtime has its part of it; else nothing."""
    import onnxruntime as ort

    from .resident import STEP_GRAPH, STEP_NAME  # which needs this module

    if DEVICES["cuda"] in ort.get_available_providers():
        try:
            open_session(STEP_GRAPH, STEP_NAME, provider=DEVICES["cuda"])
        except UsageError as e:
            return str(e).partition(";")[0]
    return ""


def _tensors(axes: dict[str, int]) -> dict[str, tuple[str, int]]:
    return {name: ("tensor(float)", n) for name, n in axes.items()}


def _said(values: Sequence[Any]) -> str:
    return ", ".join(f"{v.name} {v.type} of {len(v.shape)} axes" for v in values)


def _axes(axes: dict[str, int]) -> str:
    return " and ".join(f"{name} of {n} axes" if n > 1 else f"{name} of 1 axis" for name, n in axes.items())


def _a(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
