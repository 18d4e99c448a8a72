"""`python -m rfp` is the `rfp` command."""

from rfp.cli.main import main

if __name__ == "__main__":
    main()
