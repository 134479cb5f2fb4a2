"""All that an installed bundle does, one after the other: `python whole_run.py RUN [TRACES]`.

A program of its own, since it may be run where there is no network: it brings the loopback up.
TRACES: a folder, where each command's network calls are written to, one file each. Prints a JSON
object: what each command answered, without times. Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

TEXT = "import <GAP>\n\nx = 1\n"
COMMANDS = {
    "generate": ["generate", "def main(", "--max-tokens", "8", "--json"],
    "infill": ["infill", "--marker", "<GAP>", "--max-tokens", "8", "--json"],
    "verify": ["verify", "--full", "--json"],
    "doctor": ["doctor", "--quick", "--json"],
    "bench": ["bench", "--prompt-tokens", "8", "--depths", "8", "--repeat", "1", "--json"],
}
SERVE = ["serve", "--port", "0", "--threads", "1"]
TRACER = ["strace", "-f", "-qq", "-e", "signal=none", "-e", "trace=%network,io_uring_setup", "-o"]


def bring_loopback_up() -> None:
    """SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP: man 7 netdevice. Where it is down we may."""
    with socket.socket() as any_socket:
        given = fcntl.ioctl(any_socket, 0x8913, struct.pack("16sH", b"lo", 0))
        flags = struct.unpack("16sH", given)[1]
        if not flags & 1:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH", b"lo", flags | 1))


def traced(name: str, traces: list[str]) -> list[str]:
    return [*TRACER, str(Path(traces[0], name))] if traces else []


def command(name: str, run: str, traces: list[str]) -> object:
    words = [*traced(name, traces), run, *COMMANDS[name]]
    done = subprocess.run(words, input=TEXT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    answer = json.loads(done.stdout)
    return answer["text"] if "text" in answer else sorted(answer)


def serve(run: str, traces: list[str]) -> object:
    """Start it, have it complete a text over loopback, and stop it."""
    words = [*traced("serve", traces), run, *SERVE]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stdout is not None
        said = re.search(r"http://\S+", server.stdout.readline())
        assert said is not None
        for _ in range(300):
            try:
                urllib.request.urlopen(said[0] + "/ready")
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.2)
        body = {"prompt": "def main(", "suffix": "\n", "max_tokens": 8, "temperature": 0}
        request = urllib.request.Request(said[0] + "/v1/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as reply:
            answer = json.load(reply)["choices"][0]
        os.killpg(server.pid, signal.SIGTERM)
        assert server.wait() == 0
    return answer["text"]


def main() -> None:
    run, *traces = sys.argv[1:]
    bring_loopback_up()
    answers = {name: command(name, run, traces) for name in COMMANDS}
    print(json.dumps(answers | {"serve": serve(run, traces)}))


if __name__ == "__main__":
    main()
