"""The velocity of a bundle, computed by ONNX Runtime, or from a Core ML package by Core ML."""

from contextlib import AbstractContextManager, nullcontext
from typing import overload

import numpy as np

from .bundle import Bundle
from .coreml import Package
from .errors import BundleError
from .network import DEVICES, Network, cuda_problem, open_session
from .norms import Norms
from .pixels import Float
from .resident import STEP_GRAPH, STEP_NAME, Device, State


class Velocity:
    """v(x, t) of a bundle: x float32 [B, C, H, W], pictures in [-1, 1] or latents, t in [0, 1] → velocity like x."""

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | str = "auto") -> None:
        """Raises UsageError for a device that is not there, BundleError for a graph that cannot be loaded."""
        self._path = bundle.path
        self._factor = bundle.manifest.latent.factor if bundle.manifest.latent else 1
        takes, gives = {"x": 4, "t": 1}, {"velocity": 4}
        self._net: Network | Package
        self._on: Device | None = None
        if "velocity" in bundle.packages:
            self._net = Package(bundle.packages["velocity"], takes, "velocity")
            self.device, self.cores, self.batch = "coreml", 1, self._net.batch
            self.said = "coreml, by Core ML"
            return
        self._net = Network(bundle.model, bundle.path, device, takes, gives, "velocity", bundle.data, threads)
        self.device, self.cores = self._net.device, self._net.cores
        if self.device == "cuda":
            step = open_session(STEP_GRAPH, STEP_NAME, provider=DEVICES["cuda"])
            self._on = Device(self._net.session, step, "cuda")
        self.batch = self.cores if self.device == "cpu" else 16
        """How many images are best passed at once, memory aside."""
        threads_said = f", {self.cores} thread{'s' if self.cores > 1 else ''}" if self.device == "cpu" else ""
        problem = cuda_problem() if device == "auto" and self.device == "cpu" else ""
        self.said = f"{self.device}{threads_said}{problem and f'; {problem}'}"
        """What is used, for a person to read."""

    def work(self) -> AbstractContextManager[None]:
        """Around a thread's calls, where several threads make some: as `Network.work`."""
        return self._net.work() if isinstance(self._net, Network) else nullcontext()

    def put(self, x: Float) -> Float | State:
        """The state where the steps are worked out: on a GPU it stays there until `take`."""
        return x if self._on is None else self._on.put(x)

    def take(self, x: Float | State) -> Float:
        """The state in memory again."""
        return x.numpy() if isinstance(x, State) else x

    @overload
    def __call__(self, x: Float, t: float) -> Float: ...
    @overload
    def __call__(self, x: State, t: float) -> State: ...
    def __call__(self, x: Float | State, t: float) -> Float | State:
        """Raises MediaError where the graph cannot take this size or memory runs out."""
        if isinstance(x, State):
            return x.device.velocity(x, t)
        return self._like(x, self._net(x, np.array([t], np.float32)))

    def tile(self, norms: Norms, x: Float, t: float) -> Float:
        """v of a tile, float32 [1, C, H, W], in memory, normalised by what `norms` knows. Raises as calling does."""
        return self._like(x, self._net(x, np.array([t], np.float32), norms=norms, factor=self._factor))

    def _like(self, x: Float, velocity: Float) -> Float:
        if velocity.shape != x.shape:
            raise BundleError(f"{self._path}: gives {velocity.shape} for an x of {x.shape}; export it again")
        return velocity
