"""The program: `starpack`, or `python -m packager`."""

import sys

from packager.core.blas import choose_kernels


def main() -> int:
    """Run one command; returns its exit code."""
    choose_kernels()
    from packager.cli import main as cli  # loads numpy, which has to find that chosen

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
