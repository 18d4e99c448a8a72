"""The velocity of a bundle, computed by ONNX Runtime."""

import numpy as np

from .bundle import Bundle
from .errors import BundleError
from .network import Network
from .pixels import Float


class Velocity:
    """v(x, t) of a bundle: x float32 [B, C, H, W], pictures in [-1, 1] or latents, t in [0, 1] → velocity like x."""

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | str = "auto") -> None:
        """Raises UsageError for a device that is not there, BundleError for a graph that cannot be loaded."""
        self._path = bundle.path
        takes, gives = {"x": 4, "t": 1}, {"velocity": 4}
        self._net = Network(bundle.model, bundle.path, device, takes, gives, "velocity", bundle.data, threads)
        self.device, self.cores = self._net.device, self._net.cores
        self.batch = self.cores if self.device == "cpu" else 16
        """How many images are best passed at once, memory aside."""

    def __call__(self, x: Float, t: float) -> Float:
        """Raises MediaError where the graph cannot take this size or memory runs out."""
        velocity = self._net(x, np.array([t], np.float32))
        if velocity.shape != x.shape:
            raise BundleError(f"{self._path}: gives {velocity.shape} for an x of {x.shape}; export it again")
        return velocity
