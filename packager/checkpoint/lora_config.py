"""adapter_config.json of a PEFT LoRA, key by key.

As with config.json, a key that is not known may change the result and is refused. Rank and alpha
follow PEFT's own matching of patterns (peft/utils/other.py, get_pattern_key). Knows nothing of
tensors.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from packager.checkpoint.json_files import is_number, read_object
from packager.core.errors import CheckpointError
from packager.core.strict_json import same_value

ADAPTER_CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 4 * 1024 * 1024  # guessed: room for a rank per layer and module
MAX_PATTERNS = 4096  # guessed: 40 layers of 6 modules are 240
MAX_PATTERN_CHARACTERS = 256  # guessed

# The one value whose arithmetic is implemented; absent means this value.
FIXED: dict[str, tuple[object, ...]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "fan_in_fan_out": (False,),
    # Other ways to start change the base as well, which the saved adapter does not show.
    "init_lora_weights": (True, False, "gaussian", "eva"),
    "kasa_config": (None,),
    "layer_replication": (None,),
    "lora_bias": (False,),
    "megatron_config": (None,),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_bdlora": (None, False),
    "use_dora": (False,),
    "use_qalora": (False,),
    "velora_config": (None,),
}
MERGED = {
    "alpha_pattern",
    "bias",
    "ensure_weight_tying",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "use_rslora",
}
# Which modules are adapted is read from the tensors themselves.
INERT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
# No groups, hence no nested repetition: matching takes time polynomial in a short name. With at
# most MAX_REPEATS it stays small.
_PIECE = r"\w|\\?\.|\\d|\\d\+|\[\d(?:[\d-]*\d)?\]|\.\*"
_PATTERN = re.compile(rf"\^?(?:{_PIECE})+")
MAX_REPEATS = 3

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What adapter_config.json says about the merge."""

    r: int
    lora_alpha: float
    use_rslora: bool
    bias: str
    modules_to_save: tuple[str, ...]
    ensure_weight_tying: bool
    rank_pattern: tuple[tuple[re.Pattern[str], int], ...]
    alpha_pattern: tuple[tuple[re.Pattern[str], float], ...]

    def rank(self, module: str) -> int:
        """The rank of `module`, named as in the base: `model.layers.0.self_attn.q_proj`."""
        return next((v for pattern, v in self.rank_pattern if pattern.match(module)), self.r)

    def alpha(self, module: str) -> float:
        """The alpha of `module`."""
        return next(
            (v for pattern, v in self.alpha_pattern if pattern.match(module)), self.lora_alpha
        )


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check `folder`/adapter_config.json; raises CheckpointError naming the key."""
    file = folder / ADAPTER_CONFIG_NAME
    config = read_object(file, MAX_CONFIG_BYTES)
    if config.get("peft_type") != "LORA":
        raise _bad(file, "peft_type", config.get("peft_type"), '"LORA"')
    unknown = sorted(set(config) - set(FIXED) - MERGED - INERT)
    # A newer PEFT writes keys that are off by default.
    for key in unknown:
        if config[key] not in (None, False, {}, []):
            raise _bad(file, key, config[key], "no key that starpack does not know")
    for key, values in FIXED.items():
        if key in config and not any(same_value(config[key], v) for v in values):
            raise _bad(file, key, config[key], " or ".join(json.dumps(v) for v in values))
    bias = config.get("bias", "none")
    if not isinstance(bias, str) or bias not in ("none", "all", "lora_only"):
        raise _bad(file, "bias", bias, '"none", "all" or "lora_only"')
    saved = config.get("modules_to_save")
    saved = [] if saved is None else saved
    if not isinstance(saved, list) or not all(isinstance(v, str) and v for v in saved):
        raise _bad(file, "modules_to_save", saved, "a list of names")
    return AdapterConfig(
        r=_rank(config.get("r"), file, "r"),
        lora_alpha=_alpha(config.get("lora_alpha"), file, "lora_alpha"),
        use_rslora=_flag(config, "use_rslora", file),
        bias=bias,
        modules_to_save=tuple(saved),
        ensure_weight_tying=_flag(config, "ensure_weight_tying", file),
        rank_pattern=_patterns(config, "rank_pattern", file, _rank),
        alpha_pattern=_patterns(config, "alpha_pattern", file, _alpha),
    )


def _patterns(
    config: dict[str, object], key: str, file: Path, check: Callable[[object, Path, str], Value]
) -> tuple[tuple[re.Pattern[str], Value], ...]:
    """(compiled pattern, value) in the file's order: the first that matches counts."""
    table = config.get(key)
    table = {} if table is None else table
    if not isinstance(table, dict) or len(table) > MAX_PATTERNS:
        raise _bad(file, key, table, f"an object of at most {MAX_PATTERNS} patterns")
    compiled = []
    for text, value in table.items():
        # An adapter is a stranger's file: a pattern that could take forever is not compiled.
        simple = len(text) <= MAX_PATTERN_CHARACTERS and _PATTERN.fullmatch(text)
        if not simple or text.count("*") + text.count("+") > MAX_REPEATS:
            raise _bad(
                file,
                key,
                text,
                "names of modules, with at most digits \\d, ranges [0-9] and .* in them",
            )
        try:
            pattern = re.compile(rf"(.*\.)?({text})$")
        except re.error:
            raise _bad(file, key, text, "a regular expression") from None
        compiled.append((pattern, check(value, file, f"{key}.{text}")))
    return tuple(compiled)


def _rank(value: object, file: Path, key: str) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise _bad(file, key, value, "a whole number above 0")
    return value


def _alpha(value: object, file: Path, key: str) -> float:
    if not is_number(value) or not abs(value) <= sys.float_info.max:
        raise _bad(file, key, value, "a number")
    return float(value)


def _flag(config: dict[str, object], key: str, file: Path) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise _bad(file, key, value, "true or false")
    return value


def _bad(file: Path, key: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{key} is {json.dumps(value)[:200]}",
        where=file,
        expected=expected,
        remedy="merge the adapter with PEFT (merge_and_unload), save, and convert the result",
    )
