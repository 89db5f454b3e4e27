"""Which properties are tried, for which device and which weights."""

from __future__ import annotations

from dataclasses import replace

from ovgen.model.device_facts import DeviceFacts
from ovgen.model.profile_file import PROPERTIES
from ovgen.tuning.candidates import label, stages

F32_64 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"}
CPU = DeviceFacts(
    device="CPU",
    precisions=("f32", "bf16"),
    settable=frozenset(PROPERTIES),
    kv_precision="u8",
    num_cpus=8,
    has_smt=False,
    has_integer_weights=True,
    weight_group=None,
    default=F32_64,
)


def tried(facts: DeviceFacts, stage: int, best=F32_64) -> list[str]:
    found = stages(facts)[stage].variants(best)
    for properties in found:
        # A profile can hold whatever may win.
        assert all(PROPERTIES[name](value) for name, value in properties.items())
    return [label(properties) for properties in found]


def test_precisions_and_groups():
    assert tried(CPU, 0) == [
        f"precision={precision} group={group}"
        for precision in ("f32", "bf16")
        for group in (0, 32, 64, 128)
    ]


def test_groups_do_not_exceed_the_weights_group():
    f32 = replace(CPU, precisions=("f32",))
    groups = {size: tried(replace(f32, weight_group=size), 0) for size in (16, 32, 64, 128)}
    assert [len(found) for found in groups.values()] == [1, 2, 3, 4]


def test_without_integer_weights_there_is_nothing_to_quantize_for():
    facts = replace(CPU, has_integer_weights=False)
    assert tried(facts, 0) == ["precision=bf16"]  # float32 is in use


def test_a_gpu_quantizes_in_half_precision_too():
    facts = replace(CPU, device="GPU", precisions=("f32", "f16"), weight_group=32)
    assert [word for word in tried(facts, 0) if "f16" in word] == [
        "precision=f16 group=0",
        "precision=f16 group=32",
    ]


def test_kv_caches():
    best = {"INFERENCE_PRECISION_HINT": "bf16"}
    assert tried(CPU, 1) == [f"precision=f32 group=64 kv={kind}" for kind in ("f16", "f32")]
    assert tried(CPU, 1, best) == ["precision=bf16 kv=bf16"]
    assert tried(replace(CPU, kv_precision="f16"), 1)[0].endswith("kv=u8")


def test_threads():
    endings = [word.removeprefix("precision=f32 group=64 ") for word in tried(CPU, 2)]
    assert endings == ["threads=4", "threads=8", "pinning=no"]
    assert "threads=8 ht=yes" in tried(replace(CPU, has_smt=True), 2)[2]
    assert tried(replace(CPU, num_cpus=1), 2) == ["precision=f32 group=64 pinning=no"]


def test_a_device_that_takes_none_of_it():
    facts = replace(CPU, settable=frozenset({"PERF_COUNT"}), default={})
    assert [tried(facts, stage, {}) for stage in range(3)] == [[], [], []]
    assert label({}) == "the device's own"
