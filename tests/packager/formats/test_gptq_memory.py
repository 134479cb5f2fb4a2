"""The GPTQ quantiser holds one layer at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.tiny import write_checkpoint

MEMORY = """
import sys
from pathlib import Path
from packager.calibration.sequences import SequenceOptions
from packager.checkpoint.reader import read_checkpoint
from packager.formats.gptq import format as gptq
model, sources, out = map(Path, sys.argv[1:])
peak = 0
def look(*step):  # anonymous memory: how much of the libraries is resident is not ours to say
    global peak
    status = Path("/proc/self/status").read_text()
    peak = max(peak, int(status.split("RssAnon:")[1].split()[0]))
gptq.convert(
    read_checkpoint(model), gptq.variant("w4g128"), out, calibration=sources,
    sampling=SequenceOptions(2, 400, 1), progress=look,
)
print(peak)
"""


def test_memory_does_not_grow_with_depth(tmp_path):
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "a.py").write_text("".join(f"x{i} = {7 * i}\n" for i in range(300)))

    def peak_bytes(layers: int) -> int:
        folder = tmp_path / str(layers)
        shape = dict(hidden=256, heads=4, ffn=1024, window=256, layers=layers)
        arguments = [write_checkpoint(folder / "model", **shape), sources, folder / "out"]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *map(str, arguments)],
            cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return 1024 * int(done.stdout)

    shallow, deep = peak_bytes(2), peak_bytes(14)
    # kept as floats, the twelve layers between would take 35 MB
    assert deep - shallow < 20_000_000
