"""Fused adapters against what PEFT merges (tests/oracles/lora_merge.py)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.small_tensors import ArrayCheckpoint, ArrayTensor

from ovgen.errors import ConfigError, ModelError, ModelFormatError, UnsupportedModelError
from ovgen.export.checkpoint import Grid, Tensor
from ovgen.export.lora import LoraTensor, parse_adapter, with_adapters

DATA = Path(__file__).parents[1] / "data"
ADAPTERS = DATA / "lora"
CASES = ("plain", "rslora", "dora", "conv1d")
Q_PROJ = "model.layers.0.self_attn.q_proj"


def weights(case: str, when: str) -> dict[str, np.ndarray]:
    """Those that PEFT changes, before or after."""
    prefix = f"{case}/{when}/"
    with np.load(DATA / "lora.npz") as file:
        return {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


def checkpoint(case: str, **fields: Any) -> ArrayCheckpoint:
    tensors = {k: ArrayTensor(k, v, **fields) for k, v in weights(case, "before").items()}
    return ArrayCheckpoint(tensors)


def values(tensor: Tensor) -> np.ndarray:
    """All rows, in chunks of three."""
    starts = range(0, tensor.shape[0], 3)
    return np.concatenate([tensor.values(slice(start, start + 3)) for start in starts])


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_peft_merges(case: str) -> None:
    expected = weights(case, "after")
    with with_adapters(checkpoint(case), [(ADAPTERS / case, 1.0)]) as fused:
        assert fused.tensors.keys() == expected.keys()
        for name, tensor in fused.tensors.items():
            assert isinstance(tensor, LoraTensor)
            np.testing.assert_allclose(values(tensor), expected[name], rtol=1e-5, atol=1e-6)
            picked = np.array([5, 0, 2])
            np.testing.assert_array_equal(tensor.values(picked), values(tensor)[picked])


def test_scales_and_several_adapters() -> None:
    before, after = weights("plain", "before"), weights("plain", "after")
    adapters = [(ADAPTERS / "plain", 0.5), (ADAPTERS / "plain", -2.0)]
    with with_adapters(checkpoint("plain"), adapters) as fused:
        for name, tensor in fused.tensors.items():
            expected = before[name] - 1.5 * (after[name] - before[name])
            np.testing.assert_allclose(values(tensor), expected, rtol=1e-5, atol=1e-6)


def test_a_name_with_another_prefix_is_found() -> None:
    tensors = {k.removeprefix("model."): v for k, v in checkpoint("plain").tensors.items()}
    with with_adapters(ArrayCheckpoint(tensors), [(ADAPTERS / "plain", 1.0)]) as fused:
        assert all(isinstance(tensor, LoraTensor) for tensor in fused.tensors.values())


def test_quantized_weights_leave_their_grid() -> None:
    quantized = checkpoint("plain", grid=Grid(4, 8, True), dtype="Q4_1")
    with with_adapters(quantized, [(ADAPTERS / "plain", 1.0)]) as fused:
        tensor = fused.tensors[f"{Q_PROJ}.weight"]
        assert tensor.grid is None
        assert tensor.dtype == "Q4_1 + LoRA"
    with pytest.raises(ConfigError, match=r"'exact' keeps .* on the file's grid"):
        with_adapters(quantized, [(ADAPTERS / "plain", 1.0)], exact=True)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ADAPTERS / "plain", tmp_path / "adapter"))


def configure(folder: Path, **options: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"peft_type": "IA3"}, UnsupportedModelError, "peft_type is 'IA3'"),
        ({"bias": "all"}, UnsupportedModelError, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedModelError, "modules_to_save=.'lm_head'"),
        ({"use_new_kind": True}, UnsupportedModelError, "the option .use_new_kind=True."),
        ({"init_lora_weights": "pissa"}, UnsupportedModelError, "changed the base"),
        ({"r": 4}, ModelFormatError, "_proj has rank 3, the config says 4"),
        ({"lora_alpha": None}, ModelFormatError, "'lora_alpha' is None"),
        ({"lora_alpha": float("nan")}, ModelFormatError, "'lora_alpha' is nan"),
        ({"alpha_pattern": {"(x+)+": 2}}, UnsupportedModelError, "too complicated"),
        ({"alpha_pattern": {"(x": 2}}, ModelFormatError, "no regular expression"),
        ({"alpha_pattern": [1]}, ModelFormatError, "'alpha_pattern' is not an object"),
        ({"use_dora": True}, ModelFormatError, "the magnitude is missing"),
        ({"fan_in_fan_out": True}, ModelFormatError, "has shape .24, 16., the weight .16, 24."),
    ],
)
def test_what_cannot_be_fused_is_refused(
    adapter: Path, options: dict[str, Any], error: type[ModelError], problem: str
) -> None:
    configure(adapter, **options)
    with pytest.raises(error, match=problem):
        with_adapters(checkpoint("plain"), [(adapter, 1.0)])


def renamed(old: bytes, new: bytes) -> Callable[[Path], None]:
    """Change the names of tensors, at the same length."""
    assert len(old) == len(new)

    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        (renamed(b"q_proj", b"qkproj"), ModelFormatError, "'model.layers.0.self_attn.qkproj'"),
        (renamed(b"q_proj.lora_A", b"q_proj.lora_X"), UnsupportedModelError, "no part of a LoRA"),
        (renamed(b"q_proj.lora_A", b"k_proj.lora_A"), ModelFormatError, "lora_A or lora_B, not"),
        (lambda folder: (folder / "adapter_config.json").unlink(), ModelError, "no such file"),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(
                folder / "adapter_model.bin"
            ),
            ModelError,
            "the weights are a pickle",
        ),
    ],
)
def test_damaged_adapters_are_refused(
    adapter: Path, change: Callable[[Path], None], error: type[ModelError], problem: str
) -> None:
    change(adapter)
    with pytest.raises(error, match=problem):
        with_adapters(checkpoint("plain"), [(adapter, 1.0)])


def test_an_adapter_of_another_model_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="it belongs to another model"):
        with_adapters(checkpoint("conv1d"), [(ADAPTERS / "plain", 1.0)])
    wrong = checkpoint("plain")
    wrong.tensors[f"{Q_PROJ}.weight"] = ArrayTensor(f"{Q_PROJ}.weight", np.ones((8, 8), np.float32))
    with pytest.raises(ModelFormatError, match=r"the adapter belongs to another model"):
        with_adapters(wrong, [(ADAPTERS / "plain", 1.0)])


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scales_are_finite(scale: float) -> None:
    with pytest.raises(ConfigError, match="must be a finite number"):
        with_adapters(checkpoint("plain"), [(ADAPTERS / "plain", scale)])


@pytest.mark.parametrize(
    ("text", "folder", "scale"),
    [
        ("a/b", "a/b", 1.0),
        ("a/b:0.5", "a/b", 0.5),
        ("a:-2", "a", -2.0),
        ("C:\\a", "C:\\a", 1.0),
        ("a:b:2e-1", "a:b", 0.2),
    ],
)
def test_folders_with_scales(text: str, folder: str, scale: float) -> None:
    assert parse_adapter(text) == (Path(folder), scale)
