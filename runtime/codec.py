"""The codec of a bundle: pictures to what its flow moves, and back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

from .bundle import Bundle
from .coreml import Package
from .errors import BundleError
from .manifest import ROLES
from .network import Network
from .norms import Norms
from .pixels import Float


class Codec(Protocol):
    """Pictures float32 [B, 3, H, W] in [-1, 1] ↔ what the flow moves, float32 [B, channels, H/factor, W/factor]."""

    channels: int
    factor: int

    def encode(self, x: Float, norms: Norms | None = None) -> Float: ...

    def decode(self, z: Float, norms: Norms | None = None) -> Float: ...

    def work(self) -> AbstractContextManager[None]: ...


class Identity:
    """No codec: the flow moves pixels."""

    channels, factor = 3, 1

    def encode(self, x: Float, norms: Norms | None = None) -> Float:
        return x

    def decode(self, z: Float, norms: Norms | None = None) -> Float:
        return z

    def work(self) -> AbstractContextManager[None]:
        return nullcontext()


class LatentCodec:
    """The encoder and the decoder of a latent model."""

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | str = "auto") -> None:
        """Raises as Velocity does."""
        latent = bundle.manifest.latent
        assert latent is not None
        self.channels, self.factor = latent.channels, latent.factor
        self._encoder: Network | Package
        self._decoder: Network | Package
        if {"encoder", "decoder"} <= bundle.packages.keys():
            self._encoder = Package(bundle.packages["encoder"], {"x": 4}, "z")
            self._decoder = Package(bundle.packages["decoder"], {"z": 4}, "x")
            return
        path = {role: bundle.path.with_name(bundle.path.name.replace("velocity", role)) for role in ROLES}
        self._encoder = Network(
            bundle.encoder, path["encoder"], device, {"x": 4}, {"z": 4}, "encoder", bundle.data, threads
        )
        self._decoder = Network(
            bundle.decoder, path["decoder"], device, {"z": 4}, {"x": 4}, "decoder", bundle.data, threads
        )

    @contextmanager
    def work(self) -> Iterator[None]:
        """As `Network.work`."""
        with ExitStack() as stack:
            for net in (self._encoder, self._decoder):
                if isinstance(net, Network):
                    stack.enter_context(net.work())
            yield

    def encode(self, x: Float, norms: Norms | None = None) -> Float:
        """Raises MediaError where the graph cannot take this size or memory runs out."""
        b, _, h, w = x.shape
        return _shaped(self._encoder(x, norms=norms), (b, self.channels, h // self.factor, w // self.factor), "encoder")

    def decode(self, z: Float, norms: Norms | None = None) -> Float:
        """Raises as `encode` does."""
        b, _, h, w = z.shape
        return _shaped(self._decoder(z, norms=norms), (b, 3, h * self.factor, w * self.factor), "decoder")


def open_codec(bundle: Bundle, device: str = "auto", threads: int | str = "auto") -> Codec:
    """The codec that the manifest tells of. Raises UsageError, BundleError."""
    return Identity() if bundle.manifest.latent is None else LatentCodec(bundle, device, threads)


def _shaped(out: Float, wanted: tuple[int, ...], what: str) -> Float:
    if out.shape != wanted:
        raise BundleError(f"the {what} graph gives {out.shape}, and rfp.json says {wanted}; export it again")
    return out
