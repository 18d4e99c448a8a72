"""The errors that a person at the keyboard can mend.

    RfpError                  shown as one message, never as a traceback
    ├── UsageError            the command or its options (exit 2)
    │   ├── ConfigError       the config: every mistake at once
    │   └── MissingExtraError a part of rfp that is not installed
    ├── BundleError           an exported bundle that cannot be used (exit 2)
    ├── CheckpointError       a checkpoint or run folder that cannot be used (exit 2)
    ├── MediaError            one image, video or zip that cannot be read or written (exit 1)
    │   ├── OutOfMemoryError  pictures that the device's memory does not hold
    │   └── DamagedError      a video that can be read up to a point
    ├── TrainingError         training stopped: a threshold not reached, a loss not finite (exit 1)
    └── ExportError           a graph that could not be made or did not pass its proof (exit 1)

A message says where, what was found, what was wanted, and what to do next.
"""


class RfpError(Exception):
    """Root of every error that rfp raises on purpose. `exit_code` is what the command returns."""

    exit_code = 2


class UsageError(RfpError):
    """A command that cannot be carried out as it was written."""


class ConfigError(UsageError):
    """A training config with mistakes; the message lists all of them, each with its path."""


class MissingExtraError(UsageError):
    """A part of rfp whose packages are not installed; the message holds the pip line."""


class BundleError(RfpError):
    """A bundle folder or graph that is missing, damaged, or of a newer format."""


class CheckpointError(RfpError):
    """A checkpoint or run folder that is missing, damaged, or does not fit the config."""


class MediaError(RfpError):
    """One image, video or archive that cannot be read or written."""

    exit_code = 1


class OutOfMemoryError(MediaError):
    """Pictures that the device's memory does not hold at once."""


class DamagedError(MediaError):
    """A video that can be read up to a point; what comes before it was given out."""


class TrainingError(RfpError):
    """Training cannot go on."""

    exit_code = 1


class ExportError(RfpError):
    """A graph could not be exported, or fell below the floor of its proof."""

    exit_code = 1
