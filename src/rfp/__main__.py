"""The `rfp` command, by that name or as `python -m rfp`."""

import sys


def main() -> None:
    """Entry point of the console script. Ctrl-C while it still imports ends it as later, without a traceback."""
    try:
        from rfp.cli.main import app

        app(prog_name="rfp")
    except KeyboardInterrupt:
        print("rfp: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
