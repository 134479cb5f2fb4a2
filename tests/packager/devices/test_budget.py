"""Budgets: ours hold what the issue asks, a user's own works alike, wrong ones are explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packager.core.records import Budget, Limit, Workload
from packager.devices.budget import load_budget
from packager.devices.profile_file import names
from tests.support.profile_files import refused, written


def test_ours() -> None:
    assert names("budget") == ["batch", "inline", "relaxed"]
    inline = load_budget("inline")
    assert inline.first_token_s == Limit(0.15, 0.3)
    assert inline.completion_s == Limit(0.4, 0.8)
    for name in names("budget"):
        budget = load_budget(name)
        assert budget.name == name
        assert budget.context_tokens
        assert budget.memory_reserve_bytes
        assert budget.divergence_nats
        assert budget.agreement
    assert load_budget("batch").completion_s is None


def test_none_has_no_limits() -> None:
    assert load_budget(None) == Budget()
    assert load_budget(None).name == "none"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    data = {"schema": 1, "memory_bytes": 8 << 30, "per_token_s": {"p50": 0.02, "p90": 0.05}}
    data["workload"] = {"prompt_tokens": 4096}
    budget = load_budget(written(tmp_path, data))
    assert budget == Budget(
        name="mine",
        workload=Workload(prompt_tokens=4096),
        memory_bytes=8 << 30,
        per_token_s=Limit(0.02, 0.05),
    )
    assert load_budget(str(tmp_path / "mine.json")) == budget
    assert load_budget(written(tmp_path, {"schema": 1, "name": "yours"})).name == "yours"


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    budget = load_budget(written(tmp_path, {"schema": 1, "context_tokens": 4096.0}))
    assert isinstance(budget.context_tokens, int)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        # unknown keys
        ({"first_token_ms": 150}, "unknown key 'first_token_ms'", "did you mean 'first_token_s'"),
        ({"memory_gb": 8}, "unknown key 'memory_gb'", "did you mean 'memory_bytes'"),
        ({"context": 4096}, "unknown key 'context'", "'context_tokens'"),
        ({"agrement": 0.9}, "unknown key 'agrement'", "'agreement'"),
        ({"zeal": 1}, "unknown key 'zeal'", "leave it out"),
        ({"workload": {"promt_tokens": 9}}, "'promt_tokens' in 'workload'", "'prompt_tokens'"),
        ({"first_token_s": {"p50": 1, "p95": 2}}, "'p95' in 'first_token_s'", "p90"),
        # wrong units and types
        ({"first_token_s": {"p50": "150ms", "p90": 1}}, "first_token_s.p50' is '150ms'", "0.15"),
        (
            {"first_token_s": {"p50": 15000, "p90": 30000}},
            "'first_token_s.p[59]0' is ",
            "150 ms are 0.15",
        ),
        ({"per_token_s": {"p50": 100, "p90": 200}}, "'per_token_s.p[59]0' is ", "seconds"),
        ({"first_token_s": 0.15}, "'first_token_s' is 0.15", '"p50": ..., "p90": ...'),
        ({"first_token_s": {"p50": 0.15}}, "lacks 'first_token_s.p90'", "seconds"),
        ({"memory_bytes": "8GiB"}, "'memory_bytes' is '8GiB'", "8589934592"),
        ({"memory_bytes": 7.5}, "'memory_bytes' is 7.5", "bytes"),
        ({"context_tokens": True}, "'context_tokens' is True", "tokens"),
        ({"agreement": 95}, "'agreement' is 95", "description"),
        ({"memory_bytes": None}, "'memory_bytes' is None", "leave the key out"),
        # negative and zero
        ({"memory_reserve_bytes": -1}, "'memory_reserve_bytes' is -1", "bytes"),
        ({"divergence_nats": -0.1}, "'divergence_nats' is -0.1", "nats"),
        ({"completion_s": {"p50": 0, "p90": 1}}, "'completion_s.p50' is 0", "seconds"),
        ({"workload": {"output_tokens": 0}}, "'workload.output_tokens' is 0", "tokens"),
        # contradictions
        ({"first_token_s": {"p50": 2, "p90": 1}}, "p90 1 below p50 2", "swap"),
        (
            {"first_token_s": {"p50": 1, "p90": 2}, "completion_s": {"p50": 0.5, "p90": 3}},
            "'completion_s'",
            "raise completion_s",
        ),
        ({"workload": {"warm_prefix_tokens": 1024}}, "warm_prefix_tokens' is 1024", "part of"),
        ({"context_tokens": 1000}, "'context_tokens' is 1000", "raise context_tokens"),
        ({"memory_bytes": 5, "memory_reserve_bytes": 5}, "'memory_reserve_bytes' is 5", "cap"),
        ({"schema": 2}, "'schema' is 2", "description"),
    ],
)
def test_a_wrong_budget_is_explained(
    tmp_path: Path, change: dict[str, Any], message: str, hint: str
) -> None:
    error = refused(lambda: load_budget(written(tmp_path, {"schema": 1} | change)), message)
    assert hint in str(error.remedy)
    assert error.where == str(tmp_path / "mine.json")


def test_what_is_no_budget(tmp_path: Path) -> None:
    refused(lambda: load_budget("inlin"), "no budget is called 'inlin'")
    refused(lambda: load_budget(tmp_path / "absent.json"), "no such budget file")
    refused(lambda: load_budget(written(tmp_path, {})), "lacks 'schema'")
    refused(lambda: load_budget(written(tmp_path, [])), "holds a list")
    (tmp_path / "twice.json").write_text('{"schema": 1, "schema": 1}')
    refused(lambda: load_budget(tmp_path / "twice.json"), "'schema' is given twice")
    (tmp_path / "nan.json").write_text('{"schema": 1, "divergence_nats": NaN}')
    refused(lambda: load_budget(tmp_path / "nan.json"), "NaN is not a JSON number")
    (tmp_path / "inf.json").write_text('{"schema": 1, "divergence_nats": 1e999}')
    refused(lambda: load_budget(tmp_path / "inf.json"), "1e999 is too large a number")
