"""`python -m runtimes`: see runtimes/cli/main.py."""

import io
import sys

from runtimes.cli.main import main

if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # source code is UTF-8, whatever the locale
    sys.exit(main())
