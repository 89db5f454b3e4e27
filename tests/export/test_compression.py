"""Which format tensors get, and the report of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.small_tensors import ArrayCheckpoint, ArrayTensor, GridTensor

from ovgen.errors import ConfigError, ModelFormatError
from ovgen.export import compression_plan
from ovgen.export.checkpoint import Grid
from ovgen.export.compression import MODES, CompressionConfig
from ovgen.export.compression_plan import CompressionPlan, block_number
from ovgen.export.compression_report import CompressionReport
from ovgen.export.matrices import Format
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import WeightStore

RNG = np.random.default_rng(0)
HIDDEN, INNER, LAYERS = 64, 128, 4


def tensor(name: str, rows: int, cols: int, *, spread: float = 1.0) -> ArrayTensor:
    """Random values; the more they spread, the more a group loses in 4 bits."""
    values = RNG.standard_normal((rows, cols)) * np.exp(spread * RNG.standard_normal((rows, cols)))
    return ArrayTensor(name, values.astype(np.float32))


def model() -> ArrayCheckpoint:
    tensors = [tensor("model.embed_tokens.weight", 32, HIDDEN)]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        spread = 0.7 if layer == 2 else 0.0
        for kind in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj"):
            tensors.append(tensor(f"{name}.{kind}.weight", HIDDEN, HIDDEN, spread=spread))
        tensors.append(tensor(f"{name}.mlp.down_proj.weight", HIDDEN, INNER, spread=spread))
        tensors.append(ArrayTensor(f"{name}.norm.weight", np.ones(HIDDEN, np.float32)))
    tensors.append(tensor("lm_head.weight", 32, HIDDEN))
    return ArrayCheckpoint.of(*tensors)


def formats(config: CompressionConfig, checkpoint: ArrayCheckpoint | None = None) -> dict[str, str]:
    """Kind and group of every matrix."""
    checkpoint = checkpoint or model()
    plan = CompressionPlan(config, checkpoint)
    return {
        name: f"{fmt.kind} {fmt.group}"
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) > 1
        for fmt in [plan.format(tensor, is_table="embed" in name)]
    }


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mode": "int3"}, f"weights must be one of {', '.join(MODES)}, not 'int3'"),
        ({"mode": "fp16", "group_size": 64}, "group_size has no effect on fp16 weights"),
        ({"group_size": 64}, "group_size has no effect on auto weights"),
        ({"mode": "int8_sym", "ratio": 0.5}, "ratio has no effect on int8_sym weights"),
        ({"mode": "int8_asym", "all_layers": True}, "all_layers has no effect on int8_asym"),
        ({"mode": "exact", "scale_search": False}, "scale_search has no effect on exact"),
        ({"mode": "int4_sym", "group_size": 0}, "group_size must be -1 .* not 0"),
        ({"mode": "int4_sym", "group_size": 1 << 20}, "group_size must be -1 .* up to 65536"),
        ({"mode": "nf4", "ratio": -0.1}, "ratio must be between 0 and 1, not -0.1"),
        ({"mode": "nf4", "ratio": float("nan")}, "ratio must be between 0 and 1, not nan"),
        ({"overrides": (("*", "auto"),)}, "the mode of '.' must be one of"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        CompressionConfig(**options)


def test_options_have_an_effect_through_an_override() -> None:
    four_bits = (("*.down_proj.weight", "int4_sym"),)
    config = CompressionConfig(overrides=four_bits, group_size=32, scale_search=False)
    found = formats(config)
    assert found["model.layers.1.mlp.down_proj.weight"] == "int4_sym 32"
    assert found["model.layers.1.self_attn.o_proj.weight"] == "int8_sym 64"


def test_the_group_size_goes_with_an_override_in_eight_bits() -> None:
    overrides = (("*.o_proj.weight", "int8_asym"),)
    found = formats(CompressionConfig(mode="fp16", overrides=overrides, group_size=32))
    assert found["model.layers.1.self_attn.o_proj.weight"] == "int8_asym 32"
    assert found["model.layers.1.self_attn.q_proj.weight"] == "dense 0"


@pytest.mark.parametrize("mode", ["int4_sym", "int4_asym", "nf4"])
def test_four_bits_are_for_blocks(mode: str) -> None:
    found = formats(CompressionConfig(mode=mode))
    assert found.pop("model.embed_tokens.weight") == "int8_sym 64"
    assert found.pop("lm_head.weight") == "int8_sym 64"
    assert {v for k, v in found.items() if "down_proj" in k} == {f"{mode} 128"}
    assert {v for k, v in found.items() if "down_proj" not in k} == {f"{mode} 64"}


def test_all_layers() -> None:
    found = formats(CompressionConfig(mode="int4_asym", group_size=32, all_layers=True))
    assert set(found.values()) == {"int4_asym 32"}


def test_the_last_block_has_smaller_groups() -> None:
    found = formats(CompressionConfig(mode="int8_sym"))
    groups = [found[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(LAYERS)]
    assert groups == ["int8_sym 64", "int8_sym 64", "int8_sym 64", "int8_sym 32"]
    assert set(formats(CompressionConfig(mode="int8_sym", group_size=-1)).values()) == {
        "int8_sym 64",
        "int8_sym 128",
    }


def test_queries_and_keys_have_smaller_groups() -> None:
    found = formats(CompressionConfig(mode="int8_sym"))
    inner = {name.split(".")[-2]: fmt for name, fmt in found.items() if ".layers.1." in name}
    assert {name for name, fmt in inner.items() if fmt == "int8_sym 32"} == {"q_proj", "k_proj"}
    assert set(inner.values()) == {"int8_sym 32", "int8_sym 64"}


@pytest.mark.parametrize(
    "name",
    [
        "self_attn.v_proj",
        "self_attn.qkv_proj",
        "self_attention.query_key_value",
        "attn.c_attn",
        "attn.Wqkv",
    ],
)
def test_attention_has_smaller_groups_by_any_name(name: str) -> None:
    names = (f"h.1.{name}.weight", "h.0.w.weight", "h.2.w.weight")
    checkpoint = ArrayCheckpoint.of(*(tensor(each, 4, 128) for each in names))
    plan = CompressionPlan(CompressionConfig(mode="int8_sym"), checkpoint)
    assert plan.format(checkpoint.tensors[names[0]]).group == 32


@pytest.mark.parametrize(
    ("cols", "wanted", "group"),
    [(576, 128, 64), (576, 64, 64), (576, 96, 96), (640, 128, 128), (96, 64, 32), (896, 512, 128)],
)
def test_groups_that_do_not_divide_a_row(cols: int, wanted: int, group: int) -> None:
    checkpoint = ArrayCheckpoint.of(tensor("h.0.w.weight", 4, cols), tensor("h.1.w.weight", 4, 64))
    plan = CompressionPlan(CompressionConfig(mode="int4_sym", group_size=wanted), checkpoint)
    assert plan.format(checkpoint.tensors["h.0.w.weight"]).group == group
    said = [f"rows of {cols} values take groups of {group}: {wanted} does not divide them"]
    assert plan.notes == (said if group != wanted else [])


@pytest.mark.parametrize("cols", [72, 33])
def test_rows_that_no_group_divides_stay_in_eight_bits(cols: int) -> None:
    checkpoint = ArrayCheckpoint.of(tensor("h.0.w.weight", 4, cols))
    plan = CompressionPlan(CompressionConfig(mode="int4_sym"), checkpoint)
    fmt = plan.format(checkpoint.tensors["h.0.w.weight"])
    assert (fmt.kind, fmt.group) == ("int8_sym", cols)
    assert plan.notes == [f"rows of {cols} values stay in 8 bits: no group divides them"]


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.75, 1.0])
def test_the_ratio(ratio: float) -> None:
    checkpoint = model()
    found = formats(CompressionConfig(mode="int4_sym", group_size=32, ratio=ratio), checkpoint)
    sizes = {name: checkpoint.tensors[name].shape[0] * checkpoint.tensors[name].shape[1]
             for name in found if block_number(name) >= 0}  # fmt: skip
    share = sum(n for k, n in sizes.items() if found[k] == "int4_sym 32") / sum(sizes.values())
    assert ratio - 0.1 < share <= ratio
    assert checkpoint.released > 0
    if ratio == 0.75:  # the block whose values spread most
        kept = {name for name in sizes if found[name] != "int4_sym 32"}
        assert kept == {name for name in sizes if block_number(name) == 2}
    for layer in range(LAYERS):  # in one matmul
        name = f"model.layers.{layer}.self_attn"
        assert found[f"{name}.q_proj.weight"] == found[f"{name}.k_proj.weight"]


def test_experts() -> None:
    found = tensor("model.layers.0.mlp.experts.down_proj.weight", 8, 256)
    checkpoint = ArrayCheckpoint.of(found)
    for mode in ("int8_sym", "int4_asym"):
        plan = CompressionPlan(CompressionConfig(mode=mode), checkpoint)
        fmt = plan.format(found, is_expert=True)
        assert (fmt.kind, fmt.group) == (mode, 128)


def test_overrides() -> None:
    overrides = (
        ("model.layers.0.*", "fp16"),
        ("*.layers.?.mlp.*", "nf4"),
        ("lm_head*", "int8_asym"),
    )
    found = formats(CompressionConfig(mode="int4_sym", overrides=overrides, group_size=32))
    assert found["model.layers.0.mlp.down_proj.weight"] == "dense 0"
    assert found["model.layers.1.mlp.down_proj.weight"] == "nf4 32"
    assert found["model.layers.1.self_attn.q_proj.weight"] == "int4_sym 32"
    assert found["lm_head.weight"] == "int8_asym 64"
    with pytest.raises(ConfigError, match=r"'nothing\*' fits no tensor; .* like model\.layers\.0"):
        formats(CompressionConfig(overrides=(("nothing*", "fp16"),)))


@pytest.mark.parametrize(
    ("grid", "small", "big", "table", "expert"),
    [
        (Grid(8, 32, False), "codes", "codes", "codes", "codes"),
        (Grid(4, 32, False), "int8_sym", "codes", "codes", "codes"),
        (Grid(4, 32, True), "int8_sym", "codes", "int8_sym", "int8_sym"),
        (Grid(4, 128, True, True), "int8_sym", "codes", "codes", "codes"),
        (Grid(6, 16, False), "int8_sym", "int8_sym", "int8_sym", "int8_sym"),
        (Grid(5, 32, True), "int8_sym", "int8_sym", "int8_sym", "int8_sym"),
        (None, "int8_sym", "int8_sym", "int8_sym", "int8_sym"),
    ],
)
def test_auto(
    grid: Grid | None,
    small: str,
    big: str,
    table: str,
    expert: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = tensor("h.1.w.weight", 8, 64) if grid is None else GridTensor("h.1.w", (8, 128), grid)
    plan = CompressionPlan(CompressionConfig(), ArrayCheckpoint.of(found))
    assert plan.format(found).kind == small
    monkeypatch.setattr(compression_plan, "SMALL_MODEL_PARAMETERS", 0)
    assert plan.format(found).kind == big
    assert plan.format(found, is_expert=True).kind == expert
    assert plan.format(found, is_table=True).kind == table
    exact = CompressionPlan(CompressionConfig(mode="exact"), ArrayCheckpoint.of(found))
    assert exact.format(found).kind == ("dense" if grid is None else "codes")
    stays = grid is not None and (not grid.has_offsets or grid.has_zero_points)
    assert exact.format(found, is_table=True).kind == ("codes" if stays else "dense")


@pytest.mark.parametrize(("seeds", "matrices"), [((1, 1), 1), ((1, 2), 2), ((1, None), 2)])
def test_act_order_is_shared_where_it_agrees(
    seeds: tuple[int | None, int | None], matrices: int, tmp_path: Path
) -> None:
    grid = Grid(4, 32, True)
    parts = [
        GridTensor(f"h.0.{name}_proj", (16, 64), grid, seed=seed or 0, shuffle=seed is not None)
        for name, seed in zip(("gate", "up"), seeds, strict=True)
    ]
    with WeightStore(tmp_path) as store:
        reader = WeightReader(ArrayCheckpoint.of(*parts), "exact", store)
        stacked = reader.stack([(part.name, 16) for part in parts], 64)
        assert len(stacked) == matrices


def test_the_report(tmp_path: Path) -> None:
    checkpoint = model()
    config = CompressionConfig(mode="int4_sym", overrides=(("*.o_proj.weight", "fp16"),))
    with WeightStore(tmp_path) as store:
        reader = WeightReader(checkpoint, config, store)
        for name, each in checkpoint.tensors.items():
            if len(each.shape) > 1:
                reader.matrix(name, each.shape, is_table="embed" in name)
        report = reader.report
    total = sum(t.array.size for t in checkpoint.tensors.values() if t.array.ndim > 1)
    kinds = {row.label: row for row in report.by_kind()}
    assert list(kinds) == ["embed_tokens", "q_proj", "k_proj", "o_proj", "down_proj", "lm_head"]
    assert kinds["q_proj"].num_tensors == LAYERS
    assert kinds["q_proj"].share == pytest.approx(LAYERS * HIDDEN * HIDDEN / total)
    assert kinds["o_proj"].formats == ("fp16",)
    assert kinds["o_proj"].relative_rms < 3e-4 < kinds["q_proj"].relative_rms < 0.2
    by_format = report.by_format()
    assert sum(row.share for row in by_format) == pytest.approx(1)
    assert [row.num_values for row in by_format] == sorted(
        (row.num_values for row in by_format), reverse=True
    )
    text = report.to_text()
    assert "int4_sym, per channel" in text
    assert text.endswith("rows of 64 values take groups of 64: 128 does not divide them")
    assert report.to_dict()["kinds"][1]["label"] == "q_proj"


def test_an_empty_report_has_no_rows() -> None:
    assert CompressionReport().by_format() == []
    assert CompressionReport().by_kind() == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    bad = tensor("h.0.w.weight", 8, 64)
    bad.array[3, 5] = value
    for mode in ("fp16", "int8_sym", "int4_asym", "nf4"):
        if value == 1e6 and mode in ("int8_sym",):
            continue  # its scale is finite in half precision
        with WeightStore(tmp_path) as store:
            reader = WeightReader(ArrayCheckpoint.of(bad), mode, store)
            with pytest.raises(ModelFormatError, match=r"'h\.0\.w\.weight' holds .* not finite"):
                reader.matrix("h.0.w.weight", (8, 64))


def test_equal_formats_are_equal() -> None:
    assert Format("codes", "f16", grid=Grid(4, 32, True)) == Format(
        "codes", "f16", grid=Grid(4, 32, True)
    )
