"""The velocity of a bundle, computed by ONNX Runtime."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .errors import BundleError, MediaError, UsageError
from .pixels import Float

DEVICES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}


def open_session(model: bytes, path: Path, threads: int = 0, provider: str = "CPUExecutionProvider") -> Any:
    """An onnxruntime.InferenceSession over a serialised graph; `threads` 0 means one for each core.

    The graph is passed as bytes: they are the bytes whose sha256 was checked, and ONNX Runtime then reads no other
    file for it (external data, absolute or relative, is refused).

    Raises:
        BundleError: the graph is damaged, or needs external data or operators that are not there.
        UsageError: the provider is there but does not start.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the codecs need the cores between calls
    providers = [provider] if provider == DEVICES["cpu"] else [provider, DEVICES["cpu"]]
    if provider == DEVICES["cuda"]:
        ort.preload_dlls()  # CUDA's libraries may have come with pip
    try:
        session = ort.InferenceSession(model, options, providers=providers)
    except Exception as e:  # ONNX Runtime's errors share no base below Exception
        raise BundleError(f"{path}: ONNX Runtime cannot load this graph ({_first_line(e)}); export it again") from e
    if provider not in session.get_providers():  # ONNX Runtime only logs it and goes on with the CPU
        raise UsageError(
            f"{provider} could not start (is its driver or library missing?); --device cpu works everywhere"
        )
    return session


class Velocity:
    """v(x, t) of a bundle: x float32 [B, 3, H, W] in [-1, 1] and t in [0, 1] → velocity float32 [B, 3, H, W].

    On the CPU every image of a batch is a call of its own, so a result never depends on its batch. With as many images
    as cores each core runs one call at one thread: 1.2 times as fast as one call on all threads, 1.7 times as fast as
    one by one (64 px, 2 cores: benchmarks/RESULTS.md). With fewer images, one call has all threads.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        """Raises UsageError for a device that is not there, BundleError for a graph that cannot be loaded."""
        self._bundle = bundle
        self.device = choose_device(device)
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.batch = self.cores if self.device == "cpu" else 16
        """How many images are best passed at once, memory aside."""
        _check_signature(self._wide, bundle.path)

    def __call__(self, x: Float, t: float) -> Float:
        """Raises MediaError where the graph cannot take this size or memory runs out."""
        time = np.array([t], np.float32)
        if self.device != "cpu":
            return self._run(self._wide, x, time)
        images = [x[i : i + 1] for i in range(len(x))]
        if len(x) < self.cores or self.cores == 1:
            return np.concatenate([self._run(self._wide, image, time) for image in images])
        return np.concatenate(list(self._pool.map(lambda image: self._run(self._narrow, image, time), images)))

    @cached_property
    def _wide(self) -> Any:
        return open_session(self._bundle.model, self._bundle.path, provider=DEVICES[self.device])

    @cached_property
    def _narrow(self) -> Any:
        return open_session(self._bundle.model, self._bundle.path, threads=1)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.cores, "velocity")

    def _run(self, session: Any, x: Float, time: Float) -> Float:
        try:
            velocity: Float = session.run(["velocity"], {"x": x, "t": time})[0]
        except Exception as e:
            size = f"{x.shape[3]}×{x.shape[2]}"
            raise MediaError(f"the velocity graph failed at {size} px ({_first_line(e)}); try a smaller --size") from e
        if velocity.shape != x.shape:
            raise BundleError(f"{self._bundle.path}: gives {velocity.shape} for an x of {x.shape}; export it again")
        return velocity


def choose_device(device: str) -> str:
    """`auto` → cuda where ONNX Runtime has it, else cpu; a device asked for by name is that or an error."""
    import onnxruntime as ort

    available: Sequence[str] = ort.get_available_providers()
    if device == "auto":
        return "cuda" if DEVICES["cuda"] in available else "cpu"
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is not known; wanted auto, {', '.join(DEVICES)}")
    if DEVICES[device] not in available:
        install = {"cuda": "; install onnxruntime-gpu in place of onnxruntime", "coreml": "; it comes with macOS"}
        raise UsageError(
            f"device {device!r} is not in this ONNX Runtime ({', '.join(available)}){install.get(device, '')}"
        )
    return device


def _check_signature(session: Any, path: Path) -> None:
    takes = {i.name: (i.type, len(i.shape)) for i in session.get_inputs()}
    gives = {o.name: (o.type, len(o.shape)) for o in session.get_outputs()}
    image = ("tensor(float)", 4)
    if takes != {"x": image, "t": ("tensor(float)", 1)} or gives.get("velocity") != image:
        raise BundleError(
            f"{path}: not a velocity graph: it takes {takes} and gives {gives}; wanted x [B, 3, H, W] and t [1] "
            "to velocity [B, 3, H, W], all float32"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
