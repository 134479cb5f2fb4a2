"""What a variant of a model takes on a device for a budget's workload, before anything is made.

Puts together bytes (memory.py), time (time_model.py) and what both were found to be off by on
devices that the fit had not seen (validate.py). Says where that is not enough. Prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from packager import formats
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
from packager.estimate.time_model import HBM, Load, Time, decode, pairs_seen, prefill, rates
from packager.formats import CHUNK_TOKENS, Engine, Footprint, Setting
from runtimes.contract import Window

DEFAULT_CONTEXT_TOKENS = 16_384  # what StarCoder2 was trained to; longer only on request
SMALL_PARAMETERS = 2e9  # below it no model was in the fit
MIN_CAPABILITY = 7.0
# Guessed: buffers and what libraries load, unlike weights and caches, are not computed exactly.
LOOSE_MEMORY = 0.3


@dataclass(frozen=True, slots=True)
class Case:
    """A variant of a model on a device, open for a context; made by `case_of`."""

    geometry: Geometry
    window: Window
    variant: Variant
    device: Device
    footprint: Footprint

    @property
    def engine(self) -> Engine:
        """What runs the variant."""
        return formats.load(self.variant.format).ENGINE

    @property
    def load(self) -> Load[float, str]:
        """As the model of time sees it."""
        geometry, found = self.geometry, self.footprint
        return Load(
            weights_bytes=found.streamed_bytes,
            parameters=geometry.parameters - geometry.vocab * geometry.hidden * (2 - geometry.tied),
            layers=geometry.layers,
            hidden=geometry.heads * geometry.head_dim,
            heads=geometry.heads,
            vocab=geometry.vocab,
            cache_bytes=geometry.position_bytes(found.value_bytes),
            family=found.family,
            engine="cpu" if self.device.kind == "cpu" else self.engine.name,
            product=found.product,
            fused=1.0,
            batch_tokens=CHUNK_TOKENS,
            cold=0.0,
        )

    def seen(self, position: int) -> int:
        """Cells that attention goes through for a token at `position`."""
        return min(position, self.footprint.attended_cells)

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
        found, engine = self.device.calibration, self.engine.calibrated_by
        return found if found and engine and found.engine.startswith(engine) else None

    def seconds(self, time: Time) -> float:
        """With the calibration, where there is one."""
        found = self.calibration
        if found is None:
            return float(time.seconds())
        return float(time.seconds(found.memory, found.arithmetic, found.launch))


def case_of(
    geometry: Geometry, window: Window, variant: Variant, device: Device, context_tokens: int
) -> Case:
    """The case, with what the variant takes."""
    setting = Setting(context_tokens, device=device)
    found = memory.footprint(geometry, variant, window, setting)
    return Case(geometry, window, variant, device, found)


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
    case = case_of(geometry, window, variant, device, context)
    parts = memory.memory_parts(case.footprint, device)
    calibrated = case.calibration is not None
    spreads = _fitted().spreads
    first_spread = spreads["calibrated-prefill" if calibrated else "prefill"]
    token_spread = spreads["calibrated-decode" if calibrated else case.engine.spread]
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
        unsupported=formats.load(variant.format).unsupported(variant, device),
        unreliable=None if calibrated else _unlike_fit(case),
    )


def _unlike_fit(case: Case) -> str | None:
    """Why the fit does not speak of the case; None where it does."""
    device, small = case.device, case.geometry.parameters < SMALL_PARAMETERS
    if device.calibration and device.kind != "gpu":
        return f"the device was calibrated with {device.calibration.engine}, not with this engine"
    if device.kind == "cpu":
        return "a CPU's figures depend on the machine"
    if device.kind == "soc":
        return "GPUs that share memory with the CPU start kernels slowly"
    if float(device.compute_capability or 0) < MIN_CAPABILITY:
        return "GPUs before compute capability 7.0 compute float16 by other ways"
    if small:
        kind = "a card with HBM" if device.compute_capability in HBM else "any card"
        return f"no model below 2 billion parameters on {kind} was in the fit"
    if case.engine.launch_us is not None:
        return f"no published GPU measurements of the engine of {case.variant.format}"
    return None


def _first_token_s(case: Case, workload: Workload) -> float:
    """A prompt never takes less than a step; the last token is always computed."""
    warm = min(workload.warm_prefix_tokens, workload.prompt_tokens - 1)
    size = case.window.size_tokens
    past = size is not None and workload.prompt_tokens + workload.output_tokens > size
    if past and not case.footprint.rewinds:
        warm = 0
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
