"""Which compile properties are worth a measurement, on a device and for a model.

A coordinate search: precision with the group of dynamic quantization, then the KV cache, then
threads, each from the best of the one before. The full product would take ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ovgen.model.device_facts import DeviceFacts

Properties = Mapping[str, str]

PRECISION = "INFERENCE_PRECISION_HINT"
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
KV_CACHE = "KV_CACHE_PRECISION"
THREADS = "INFERENCE_NUM_THREADS"
HYPER_THREADING = "ENABLE_HYPER_THREADING"
PINNING = "ENABLE_CPU_PINNING"

# What changes the logits; the others change the speed alone.
NUMERIC = (PRECISION, GROUP, KV_CACHE)

_GROUPS = (32, 64, 128)
_NAMES = {
    PRECISION: "precision",
    GROUP: "group",
    KV_CACHE: "kv",
    THREADS: "threads",
    HYPER_THREADING: "ht",
    PINNING: "pinning",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One coordinate: what it is called, and what to try from the best properties so far."""

    name: str
    variants: Callable[[Properties], list[Properties]]


def stages(facts: DeviceFacts) -> tuple[Stage, ...]:
    """The coordinates, in the order in which they are searched."""
    return (
        Stage("precision", lambda best: _precisions(facts, best)),
        Stage("KV cache", lambda best: _kv_caches(facts, best)),
        Stage("threads", lambda best: _threads(facts, best)),
    )


def label(properties: Properties) -> str:
    """Properties in a few words."""
    words = [f"{name}={properties[key]}" for key, name in _NAMES.items() if key in properties]
    return " ".join(words).lower() or "the device's own"


def _precisions(facts: DeviceFacts, best: Properties) -> list[Properties]:
    """Every precision, with every group that the device may quantize activations in."""
    if PRECISION not in facts.settable:
        return []
    rest = {key: value for key, value in best.items() if key not in (PRECISION, GROUP)}
    found: list[Properties] = []
    for precision in facts.precisions:
        if GROUP in facts.settable and facts.has_integer_weights:
            found += [{PRECISION: precision, GROUP: group, **rest} for group in _groups(facts)]
        elif precision != best.get(PRECISION):
            found.append({PRECISION: precision, **rest})
    return found


def _groups(facts: DeviceFacts) -> list[str]:
    """Off, and what does not exceed the weights' group: that would be off again."""
    largest = facts.weight_group or _GROUPS[-1]
    return ["0", *(str(group) for group in _GROUPS if group <= largest)]


def _kv_caches(facts: DeviceFacts, best: Properties) -> list[Properties]:
    """8 bits, half and, beside float32, float32; not what the device takes anyway."""
    if KV_CACHE not in facts.settable:
        return []
    precision = best.get(PRECISION, facts.precisions[-1])
    kinds = ["u8", "bf16" if precision == "bf16" else "f16"]
    if precision == "f32":
        kinds.append("f32")
    return [{**best, KV_CACHE: kind} for kind in kinds if kind != facts.kv_precision]


def _threads(facts: DeviceFacts, best: Properties) -> list[Properties]:
    """Half of the processors, all of them, and threads that the system may move about."""
    found: list[Properties] = []
    if THREADS in facts.settable and facts.num_cpus > 1:
        found += [{**best, THREADS: str(count)} for count in (facts.num_cpus // 2, facts.num_cpus)]
        if facts.has_smt and HYPER_THREADING in facts.settable:
            found.append({**best, THREADS: str(facts.num_cpus), HYPER_THREADING: "YES"})
    if PINNING in facts.settable:
        found.append({**best, PINNING: "NO"})
    return found
