"""A server under wrk (a system package), on the loopback interface.

python -m benchmarks.wrk_serve BUNDLE

Connections ask without a pause, in four dialects. 429 is an answer; any other status than 200, and
any error of a connection, is a failure (code 1). Whether answers are right, and what clients that
leave do, is the matter of load_serve.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

from benchmarks.serving import served

SCRIPT = Path(__file__).with_name("serve.lua")
WELL = {"200", "429"}


def main() -> None:
    """Serve, load, report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    words = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt install wrk, or your system's way")
    command = ["wrk", "--threads", "2", "--connections", str(words.connections), "--timeout", "60s"]
    command += ["--duration", f"{words.seconds}s", "--script", str(SCRIPT)]
    with served(words.bundle, "--threads", str(words.threads), "--queue", "24") as (url, _):
        done = subprocess.run([*command, url], check=True, capture_output=True, text=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("JSON "))
    report = json.loads(line.removeprefix("JSON "))
    print(json.dumps(report, indent=2))
    broken = sum(report[kind] for kind in ("connect", "read", "write", "timeout"))
    raise SystemExit(bool(broken or set(report["statuses"]) - WELL or not report["statuses"]))


if __name__ == "__main__":
    main()
