"""The `rfp` command, by that name or as `python -m rfp`."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Entry point of the console script. Ctrl-C while it still imports ends it as later, without a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by what started it, as some services do: nobody listens, all the same
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    try:
        from rfp.cli.main import app

        app(prog_name="rfp")
    except KeyboardInterrupt:
        print("rfp: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
