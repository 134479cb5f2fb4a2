"""What a variant of a model takes on a device for a budget's workload, before anything is made.

Puts together bytes (footprint.py), time (estimate_model.py) and what both were found to be off by
on devices that the fit had not seen (validate.py). Says where that is not enough. Prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from packager.core.errors import UsageError
from packager.core.records import (
    Budget,
    Calibration,
    Device,
    Estimate,
    Geometry,
    Interval,
    MemoryParts,
    Variant,
    Workload,
)
from packager.estimate import memory
from packager.estimate.constants import Fitted, load_fitted
from packager.estimate.memory import Setting
from packager.estimate.published import family, product
from packager.estimate.time_model import HBM, Load, Time, decode, pairs_seen, prefill, rates
from runtimes.contract import Window
from runtimes.host.gpu_memory import half_fits

DEFAULT_CONTEXT_TOKENS = 16_384  # what StarCoder2 was trained to; longer only on request
SMALL_PARAMETERS = 2e9  # below it no model was in the fit
LEAST_CAPABILITY = 7.0
# Guessed: buffers and what libraries load, unlike weights and caches, are not computed exactly.
LOOSE_MEMORY = 0.3
ENGINES = {"gguf": "llama", "gptq": "torch", "onnx": "onnx"}
# By format, how the engine that `starpack device calibrate` runs names itself.
CALIBRATED_ENGINES = {"gguf": "llama-cpp-python"}
SPREADS = {"gguf": "decode-gguf", "gptq": "decode-gptq", "onnx": "decode-onnx"}


@dataclass(frozen=True, slots=True)
class Case:
    """A variant of a model on a device, opened as a budget asks."""

    geometry: Geometry
    window: Window
    variant: Variant
    device: Device
    setting: Setting

    @property
    def load(self) -> Load:
        """As the model of time sees it."""
        geometry, variant, setting = self.geometry, self.variant, self.setting
        width = memory.key_value_width(variant, setting.gpu)
        kind = family_of(variant)
        if variant.format == "gptq" and not setting.kernel4 and setting.half:
            kind = "float"
        engine = ENGINES[variant.format]
        return Load(
            weights_bytes=memory.streamed_bytes(geometry, variant, setting),
            parameters=geometry.parameters - geometry.vocab * geometry.hidden * (2 - geometry.tied),
            layers=geometry.layers,
            hidden=geometry.heads * geometry.head_dim,
            heads=geometry.heads,
            vocab=geometry.vocab,
            cache_bytes=2 * geometry.layers * geometry.kv_heads * geometry.head_dim * width,
            family=kind,
            engine=engine if setting.gpu else "cpu",
            # streamed_bytes has the expanding already
            product="float" if setting.expands else product(kind, engine),
            fused=1.0,
            batch_tokens=setting.chunk_tokens,
        )

    def seen(self, position: int) -> int:
        """Cells that attention goes through for a token at `position`."""
        size = self.window.size_tokens
        if self.variant.format == "gguf":  # masked, but computed
            return min(position, memory.cache_cells("gguf", self.window, self.setting))
        return position if size is None else min(position, size)

    def decode_time(self, position: int) -> Time:
        """One token with `position` tokens before it."""
        constants = _fitted().constants
        return decode(self.load, rates(self.device), constants, self.seen(position))

    def prefill_time(self, past_tokens: int, new_tokens: int) -> Time:
        """`new_tokens` of a prompt, of which `past_tokens` are in the cache."""
        pairs = pairs_seen(past_tokens, new_tokens, self.window.size_tokens)
        constants = _fitted().constants
        return prefill(self.load, rates(self.device), constants, new_tokens, pairs)

    @property
    def calibration(self) -> Calibration | None:
        """The device's, where it was measured with the engine that runs this variant."""
        found = self.device.calibration
        engine = CALIBRATED_ENGINES.get(self.variant.format)
        return found if found and engine and found.engine.startswith(engine) else None

    def seconds(self, time: Time) -> float:
        """With the calibration, where there is one."""
        found = self.calibration
        if found is None:
            return float(time.seconds())
        return float(time.seconds(found.memory, found.arithmetic, found.launch))


def estimate(
    model_name: str,
    geometry: Geometry,
    window: Window,
    variant: Variant,
    device: Device,
    budget: Budget,
) -> Estimate:
    """Memory and time, each with the ends between which nine of ten lie.

    first_token_s is that of a request whose warm prefix is in the cache. Raises UsageError where
    the workload does not fit the context.
    """
    workload, context = budget.workload, budget.context_tokens or DEFAULT_CONTEXT_TOKENS
    if workload.prompt_tokens + workload.output_tokens > context:
        raise UsageError(
            f"{workload.prompt_tokens} tokens of prompt and {workload.output_tokens} of output are "
            f"more than the context of {context}",
            where=f"budget {budget.name}",
            remedy="raise context_tokens of the budget, or shorten its workload",
        )
    setting = _setting(geometry, variant, device, context)
    case = Case(geometry, window, variant, device, setting)
    parts = memory.memory_parts(geometry, variant, window, device, setting)
    calibrated = case.calibration is not None
    spreads = _fitted().spreads
    first_spread = spreads["calibrated-prefill" if calibrated else "prefill"]
    token_spread = spreads["calibrated-decode" if calibrated else SPREADS[variant.format]]
    first = _interval(_first_token_s(case, workload), first_spread)
    middle = workload.prompt_tokens + workload.output_tokens // 2
    token = _interval(case.seconds(case.decode_time(middle)), token_spread)
    more = max(workload.output_tokens - 1, 0)  # the first comes with the prompt
    return Estimate(
        model=model_name,
        variant=variant,
        device=device.name,
        context_tokens=context,
        parts=parts,
        memory_bytes=_memory(parts),
        first_token_s=first,
        per_token_s=token,
        completion_s=Interval(
            first.low + more * token.low,
            first.middle + more * token.middle,
            first.high + more * token.high,
        ),
        evidence="calibrated" if calibrated else "specification",
        outside=outside(case),
    )


def _setting(geometry: Geometry, variant: Variant, device: Device, context: int) -> Setting:
    """How the backend will open it there (runtimes/backends/gptq/device.py choose_way)."""
    gpu = device.kind != "cpu"  # on a CPU torch has the kernel, if a slow one
    kernel4 = not gpu or "gptq-torch-int4" in device.kernels
    setting = Setting(context, gpu=gpu, kernel4=kernel4)
    if variant.format == "gptq" and not kernel4:
        weights = memory.weights_bytes(geometry, variant, setting)
        setting = replace(setting, half=half_fits(weights, device.memory_bytes.value))
    return setting


def family_of(variant: Variant) -> str:
    """The kind of a variant's weights, as the constants know it."""
    if variant.format == "gguf":
        return family(variant.recipe)
    if variant.bits >= 16:
        return "float"
    return "block8" if variant.format == "onnx" and variant.bits >= 8 else "group4"


def outside(case: Case) -> str:
    """Why the estimate cannot be relied on there; empty where it can.

    What has no kernel stays outside whatever was measured; the rest ends with a calibration.
    """
    return _without_kernel(case) or ("" if case.calibration else _unlike_fit(case))


def _without_kernel(case: Case) -> str:
    variant, device = case.variant, case.device
    if not case.setting.gpu:
        return ""
    if variant.format == "gptq" and not case.setting.kernel4:
        return "torch has no kernel for 4-bit weights below compute capability 8.0"
    if variant.format == "onnx":
        if "fp16" not in variant.recipe:
            return "ONNX Runtime attends in float16 alone on GPUs: take a recipe with -fp16"
        if family_of(variant) != "float" and "onnx-matmulnbits" not in device.kernels:
            return "ONNX Runtime has no kernel for 4- and 8-bit weights there"
    if variant.recipe == "BF16" and not device.bfloat16:
        return "the device has no bfloat16"
    return ""


def _unlike_fit(case: Case) -> str:
    device, small = case.device, case.geometry.parameters < SMALL_PARAMETERS
    if device.calibration and device.kind != "gpu":
        return f"the device was calibrated with {device.calibration.engine}: measure this format"
    if device.kind == "cpu":
        return "a CPU's figures depend on the machine: calibrate it"
    if device.kind == "soc":
        return "GPUs that share memory with the CPU start kernels slowly: calibrate it"
    if float(device.compute_capability) < LEAST_CAPABILITY:
        return "GPUs before compute capability 7.0 compute float16 by other ways: calibrate it"
    if small:
        kind = "a card with HBM" if device.compute_capability in HBM else "any card"
        return f"no model below 2 billion parameters on {kind} was in the fit: calibrate it"
    if case.variant.format == "onnx":
        return "nobody published ONNX Runtime's speed on GPUs with this model: calibrate it"
    return ""


def _first_token_s(case: Case, workload: Workload) -> float:
    """A prompt never takes less than a step; the last token is always computed."""
    warm = min(workload.warm_prefix_tokens, workload.prompt_tokens - 1)
    size = case.window.size_tokens
    ring = case.variant.format == "onnx" and case.setting.gpu and size is not None
    if ring and workload.prompt_tokens + workload.output_tokens > size:
        warm = 0  # the engine's own ring cannot go back past the window
    step = case.seconds(case.decode_time(workload.prompt_tokens))
    whole = case.seconds(case.prefill_time(warm, workload.prompt_tokens - warm))
    return max(step, whole)


def _interval(middle: float, spread: Interval) -> Interval:
    return Interval(middle * spread.low, middle, middle * spread.high)


def _memory(parts: MemoryParts) -> Interval:
    total = parts.total_bytes
    loose = LOOSE_MEMORY * (parts.compute_bytes + parts.context_bytes + parts.library_bytes)
    return Interval(total - loose, float(total), total + loose)


@cache
def _fitted() -> Fitted:
    return load_fitted()
