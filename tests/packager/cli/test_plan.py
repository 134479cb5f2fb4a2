"""`plan` and `matrix`: answers for real devices without any weights."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from packager.cli.main import main

GIB = 1 << 30


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("device", ["tesla-t4", "rtx-3060-12gb", "l4-24gb"])
def test_a_card_gets_an_answer_with_a_reason_for_every_other_one(capsys, device):
    code, out = run(capsys, "plan", "--device", device, "--budget", "inline", "--json")
    found = json.loads(out)
    assert code == 0
    chosen = found["chosen"]
    assert chosen["evidence"] == "specification"
    assert not chosen["unsupported"] and not chosen["unreliable"]
    assert chosen["first_token_s"]["p90"] <= 0.3 and chosen["completion_s"]["p90"] <= 0.8
    models = {r["candidate"]["model"] for r in found["rejected"]} | {chosen["model"]}
    assert models == {"3b", "7b", "15b"}
    assert all(r["reason"] and r["remedy"] for r in found["rejected"])


def test_a_jetson_needs_its_estimate_accepted_and_the_override_is_recorded(capsys):
    plan = ["plan", "--device", "jetson-orin-nano-8gb", "--models", "3b"]
    code, out = run(capsys, *plan, "--json")
    assert code == 3
    assert any("calibrate" in r["remedy"] for r in json.loads(out)["rejected"])
    code, out = run(capsys, *plan, "--accept-uncalibrated", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["overrides"] == [f"uncalibrated: {found['chosen']['unreliable']}"]


def test_no_calibration_is_offered_where_a_kernel_is_missing(capsys):
    """A T4 has no kernel for float32 attention: no measurement of it would change that."""
    _, out = run(capsys, "plan", "--device", "tesla-t4", "--models", "3b", "--json")
    (lost,) = (
        r for r in json.loads(out)["rejected"] if r["candidate"]["name"] == "3b onnx-int4-g32"
    )
    assert "float16" in lost["reason"] and "another recipe or device" in lost["remedy"]
    assert "calibrate" not in lost["remedy"] and "accept" not in lost["remedy"]
    plan = ["plan", "--device", "tesla-t4", "--models", "3b", "--formats", "onnx:int4-g32"]
    assert run(capsys, *plan, "--accept-uncalibrated", "--json")[0] == 3


def test_a_card_of_2_gib_gets_exit_code_3_and_a_useful_list(capsys, tmp_path):
    from packager.devices.database import read_device

    data = read_device("tesla-t4")
    data["name"], data["aliases"] = "small", []
    data["memory_bytes"]["value"] = 2 * GIB
    file = tmp_path / "small.json"
    file.write_text(json.dumps(data))
    assert main(["plan", "--device", str(file)]) == 3
    text = capsys.readouterr().err
    assert "nothing fits small (2.00 GiB)" in text
    nearest = text.splitlines()[2]
    assert "3b" in nearest and " of memory" in nearest and "To make it fit: " in nearest
    code, out = run(capsys, "plan", "--device", file, "--json")
    assert code == 3
    assert json.loads(out)["rejected"][0]["limit"] == "memory"


def test_a_15b_is_never_chosen_without_the_word_on_its_infilling(capsys):
    code, out = run(capsys, "plan", "--device", "h100-80gb-sxm", "--budget", "relaxed")
    assert code == 0
    assert "15b" in out.splitlines()[0] and "fill in the middle was faulty" in out


def test_the_matrix_is_a_table_of_the_whole_fleet(capsys, tmp_path):
    table = tmp_path / "fleet.csv"
    words = ["matrix", "--devices", "t4,tesla-p40,l4", "--budgets", "inline,relaxed"]
    words += ["--models", "3b,7b", "--formats", "gguf:Q8_0,gguf:Q4_K_M"]
    code, out = run(capsys, *words, "--csv", table)
    assert code == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["device"], row["budget"]) for row in rows] == [
        (device, budget)
        for device in ("tesla-t4", "tesla-p40", "l4-24gb")
        for budget in ("inline", "relaxed")
    ]
    assert {row["model"] for row in rows if row["device"] == "tesla-p40"} == {"none"}
    assert all(row["reason"] for row in rows if row["model"] == "none")
    assert len(out.splitlines()) == 1 + len(rows)
    code, out = run(capsys, *words, "--json")
    assert json.loads(out)["rows"] == rows


def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m packager matrix --devices t4 --models 3b | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
