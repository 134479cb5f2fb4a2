"""The toy's server in a process of its own: `python -m tests.support.serve_toy PORT`."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

from runtimes.server.app import Settings, create_app
from runtimes.server.listen import Address, make_server, open_socket, run
from tests.support.serving import make_service


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.WARNING)
    address = Address(port=int(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder, open_socket(address) as listening:
        app = create_app(make_service(Path(folder)), Settings())
        run(make_server(app, address), listening)


if __name__ == "__main__":
    main()
