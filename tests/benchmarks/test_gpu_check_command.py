"""The GPU check's command: its record and form, flags, Ctrl-C, the device, what is kept of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import facts
from benchmarks.gpu_check.child import Keeper
from benchmarks.gpu_check.kernel_table import KERNELS, table
from benchmarks.gpu_check.parts import PARTS
from benchmarks.gpu_check.records import (
    FAILED,
    INTERRUPTED,
    MEASURED,
    NOT_RUN,
    OUT_OF_TIME,
    Job,
    Outcome,
)
from benchmarks.gpu_check.runner import Plan
from benchmarks.gpu_check.table import tables
from packager.core.atomic import write_json
from packager.core.errors import UsageError
from packager.core.record_store import to_plain
from packager.devices import nvidia
from packager.devices.nvidia import kernels_of
from packager.devices.profile_file import check_profile, slug
from tests.support.fake_nvml import A100, T4, Card, fake_nvml
from tests.support.gpu_samples import ABSENT, FACTS, FINDING, measure, processes

ROOT = Path(__file__).parents[2]
MEASURED_FOLDER = ROOT / "profiles" / "measured"


# The command


def run_command(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = command.main(["--dry-run", "--state", str(tmp_path), "--threads", "1", *words])
    return code, json.loads((tmp_path / "dry-run" / "record.json").read_bytes())


def test_a_dry_run_runs_real_processes_and_is_no_measurement(tmp_path, capsys):
    kept = sorted(MEASURED_FOLDER.rglob("*"))
    code, record = run_command(tmp_path, "--parts", "kernels-gptqmodel", "--peer", "/bin/false")
    assert (code, record["dry_run"]) == (0, True)
    (part,) = [p for p in record["parts"] if p["part"] == "kernels-gptqmodel"]
    assert part["status"] == NOT_RUN and "/bin/false has no GPTQModel" in part["what"]
    out, err = capsys.readouterr()
    assert "| kernels-gptqmodel | not run |" in out
    assert "record.json" in err
    assert sorted(MEASURED_FOLDER.rglob("*")) == kept


def test_ctrl_c_leaves_what_is_done(tmp_path, monkeypatch, capsys):
    def second(asked: Job, keeper: Keeper) -> int:
        if asked.part == "kernels":
            keeper(FINDING)
            raise KeyboardInterrupt
        return measure(asked, keeper)

    started = processes(monkeypatch, second)
    words = ("--parts", "gptq-exact kernels gguf-exact")
    code, record = run_command(tmp_path, *words)
    assert (code, started) == (130, ["gptq-exact", "kernels"])
    status = {p["part"]: p["status"] for p in record["parts"]}
    assert list(status) == list(PARTS)
    assert (status["gptq-exact"], status["kernels"]) == (MEASURED, INTERRUPTED)
    assert (status["gguf-exact"], status["gguf-3b"]) == (INTERRUPTED, NOT_RUN)
    kept = next(p for p in record["parts"] if p["part"] == "kernels")
    assert kept["findings"] == [to_plain(FINDING)]
    processes(monkeypatch, measure)
    code, record = run_command(tmp_path, *words)
    assert code == 0
    assert sum(p["status"] == MEASURED for p in record["parts"]) == 3
    capsys.readouterr()


EXACT = dict(
    kind="exactness", engine="torch", recipe="w4g128", path="float32 weights", mode="graphs",
    ids_per_call=1, window_tokens=37, positions=100, inside_rms=0.0, at_rms=0.0, past_rms=0.0,
    far_rms=0.0, largest=0.0, full_attention_rms=1.0, beyond_reach=None, exact=True,
)  # fmt: skip
SPEED = dict(
    kind="speed", engine="torch", recipe="w4g128", path="int4", model="3b", layers=28,
    whole_layers=30, prompt_tokens=512, prompt_s=[0.1, 0.2], steps=[
        {"mode": "graphs", "steps": 64, "p50_s": 0.01, "p90_s": 0.02},
        {"mode": "no graphs", "steps": 64, "p50_s": 0.02, "p90_s": 0.03},
    ], prompt_estimated_s={"low": 0.1, "middle": 0.3, "high": 0.5}, token_estimated_s=None,
)  # fmt: skip
MEMORY = dict(
    kind="memory", engine="torch", recipe="w4g128", model="3b", layers=30, whole_layers=30,
    context_tokens=4864, measured_bytes=3 << 30, weights_bytes=2 << 30, key_values_bytes=1 << 27,
    compute_bytes=1 << 29, estimated_bytes={"low": 1.0, "middle": 2.0 * (1 << 30), "high": 9e9},
)  # fmt: skip


def record_with(*findings: dict[str, Any], status: str = MEASURED) -> dict[str, Any]:
    plain = Plan(FACTS, Path(), "cuda", 1)
    return command.record_of(plain, [Outcome("gptq-3b", status, 1.0, findings=findings)])


def test_the_exit_code_says_how_it_ended():
    assert command.exit_code(record_with(EXACT)) == 0
    assert command.exit_code(record_with(EXACT, EXACT | {"exact": False})) == 4
    assert command.exit_code(record_with(EXACT, to_plain(replace(ABSENT, failed=True)))) == 1
    for status in (FAILED, OUT_OF_TIME, INTERRUPTED):
        assert command.exit_code(record_with(EXACT, status=status)) == 1
    assert command.exit_code(record_with(to_plain(ABSENT), status=NOT_RUN)) == 0


def test_every_finding_is_in_the_tables_ratio_first():
    record = record_with(EXACT, SPEED, MEMORY, to_plain(FINDING), to_plain(ABSENT))
    check_profile("measured", record, "here")
    shown = tables(record).splitlines()
    assert "NVIDIA A card, compute capability 8.6, driver 570.86" in shown[0]
    rows = [line for line in shown if line.startswith(("| exact", "| 0.50", "| 1.50", "| 1.00"))]
    assert len(rows) == 4
    assert "| 0.50 |  | 2.00 | torch | 3b w4g128 | 28 of 30 | 512 | 3413 | 100.0 |" in rows[1]
    assert "| GPTQ_MARLIN | not run | no nvcc. Remedy: install it |" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(schema=2), "'schema' is 2"),
        (lambda r: r.pop("date"), "lacks 'date'"),
        (lambda r: r["facts"].update(colour="green"), "unknown key 'colour'"),
        (lambda r: r["facts"].update(compute_capability="8"), "compute_capability"),
        (lambda r: r["parts"][0].update(status="fine"), "'fine'"),
        (lambda r: r["parts"][0]["findings"][0].update(kind="odd"), "'odd'"),
        (lambda r: r["parts"][0]["findings"][1].update(layers=0), "layers"),
        (lambda r: r["parts"][0]["findings"][1].update(prompt_ms=3), "prompt_ms"),
        (lambda r: r["parts"][0]["findings"][1].update(prompt_s=[]), "prompt_s"),
        (lambda r: r["parts"][0]["findings"][0].pop("far_rms"), "far_rms"),
    ],
)
def test_a_record_of_another_form_is_refused(change, message):
    record = json.loads(json.dumps(record_with(EXACT, SPEED, MEMORY)))
    check_profile("measured", record, "here")
    change(record)
    with pytest.raises(UsageError, match=message):
        check_profile("measured", record, "here")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "gptq"], "there is no part 'gptq'"),
        (["--limit", "kernels=soon"], "'soon' is no time"),
        (["--limit", "kernels"], "gives no value"),
        (["--python", "onnx=/usr/bin/python"], "there is no part 'onnx'"),
        (["--python", "onnx-3b=/no/such/python"], "cannot be run"),
        (["--again", "all kernel"], "there is no part 'all'"),
    ],
)
def test_flags_that_make_no_sense_are_refused(tmp_path, capsys, words, message):
    assert command.main(["--dry-run", "--state", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# The device


def driver(monkeypatch: pytest.MonkeyPatch, *cards: Card, torch: dict[str, Any]) -> None:
    module, _ = fake_nvml(*cards)
    monkeypatch.setattr(nvidia.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(facts, "_torch_facts", lambda environment: torch)


def test_facts_come_from_the_driver_and_from_torch(monkeypatch):
    seen = {"cuda": "13.0", "name": "Tesla T4", "built_for": ["sm_75", "sm_86"]}
    driver(monkeypatch, A100, T4, torch=seen)
    found = facts.find_facts(1)
    assert (found.name, found.compute_capability, found.driver) == ("Tesla T4", "7.5", "570.86.15")
    assert found.device["name"] == "tesla-t4" and not found.device_note
    assert found.torch_built_for == ("sm_75", "sm_86")
    assert found.environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert found.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    record = command.record_of(Plan(found, Path(), "cuda", 1), [Outcome("kernels", NOT_RUN)])
    check_profile("measured", record, "here")
    place = command.place_of(Plan(found, Path(), "cuda", 1))
    assert place == MEASURED_FOLDER / "tesla-t4" / f"{record['date']}.json"


def test_where_the_driver_says_too_little_torch_has_to_do(monkeypatch):
    seen = {"name": "NVIDIA A100", "capability": "8.0", "total": 5 << 30, "cuda": "13.0"}
    driver(monkeypatch, replace(A100, mig=(1, 1)), torch=seen)
    found = facts.find_facts(0)
    assert (found.name, found.compute_capability) == ("NVIDIA A100", "8.0")
    assert found.device is None and "MIG" in found.device_note


@pytest.mark.parametrize(("visible", "index"), [(None, 0), ("2,3", 2), ("", 0)])
def test_the_gpu_is_the_first_that_is_visible(monkeypatch, visible, index):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert command.first_visible() == index


def test_a_gpu_that_is_named_by_another_way_has_to_be_numbered(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a6b")
    assert command.main([]) == 2
    assert "--gpu" in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_told_what_to_do(monkeypatch, capsys):
    driver(monkeypatch, torch={"version": "2.13.0+cpu", "cuda": None, "name": None})
    assert command.main([]) == 7
    said = capsys.readouterr().err
    assert "there is no CUDA GPU here" in said and "--dry-run" in said


def test_torch_is_asked_in_a_process_of_its_own():
    pytest.importorskip("torch")
    found = facts._torch_facts({"CUDA_VISIBLE_DEVICES": ""})
    assert found["name"] is None and found["version"]


# What is kept in the repository


def check_kept(file: Path) -> None:
    """A file of profiles/measured: of the form, of a GPU, with a figure in it, in its place."""
    record = json.loads(file.read_bytes())
    check_profile("measured", record, file)
    assert not record["dry_run"], file
    assert (file.parent.name, file.stem) == (slug(record["facts"]["name"]), record["date"]), file
    assert any(part["status"] == MEASURED for part in record["parts"]), file


def test_what_is_kept_was_measured_and_is_in_its_place(tmp_path):
    for file in MEASURED_FOLDER.rglob("*.json"):
        check_kept(file)
    record = record_with(EXACT, SPEED, MEMORY)
    sound = tmp_path / "nvidia-a-card" / f"{record['date']}.json"
    write_json(sound, record)
    check_kept(sound)
    misplaced = tmp_path / "another-card" / sound.name
    write_json(misplaced, record)
    write_json(sound, record | {"dry_run": True})
    for file in (sound, misplaced):
        with pytest.raises(AssertionError, match=file.name):
            check_kept(file)


def test_the_readme_has_the_kernels_and_says_that_nothing_was_measured():
    text = (MEASURED_FOLDER / "README.md").read_text()
    assert table() in text
    none_yet = "Nothing was measured on a GPU so far." in text
    assert none_yet == (not list(MEASURED_FOLDER.rglob("*.json")))


def test_kernels_agree_with_the_device_database():
    names = {"gptq-torch-int4": "torch-int4", "onnx-matmulnbits": "ONNX MatMulNBits"}
    for capability in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)):
        known = kernels_of("{}.{}".format(*capability))
        for ours, theirs in names.items():
            assert (ours in known) == KERNELS[theirs].runs_on(capability)


def test_make_gpu_check_is_there():
    makefile = (ROOT / "Makefile").read_text()
    assert "benchmarks.gpu_check" in makefile.split("\ngpu-check:")[1].split("\n\n")[0]
