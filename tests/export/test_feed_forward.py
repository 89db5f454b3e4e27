"""What the CPU plugin makes of feed-forward networks."""

from __future__ import annotations

from pathlib import Path

import openvino as ov
import pytest
from export.test_architectures import export
from tiny_checkpoints import records

from ovgen.export.ir_weights import IRCheckpoint


@pytest.mark.parametrize(
    ("name", "activation"), [("llama", "Swish"), ("gemma", "Gelu"), ("phi3", "Swish")]
)
@pytest.mark.parametrize("weights", ["fp16", "int8_sym"])
def test_the_activation_is_within_the_gate(
    name: str, activation: str, weights: str, tmp_path: Path
) -> None:
    export(records()[name], tmp_path / "checkpoint", tmp_path, weights)
    compiled = ov.Core().compile_model(
        tmp_path / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    kinds = [
        node.get_rt_info()["layerType"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if f"{activation}_" in node.get_rt_info()["originalLayersNames"].astype(str)
    ]
    assert kinds == ["FullyConnected"] * records()[name].config["num_hidden_layers"]


def test_a_joined_projection_comes_apart_under_the_usual_names(tmp_path: Path) -> None:
    export(records()["phi3"], tmp_path / "checkpoint", tmp_path, "int8_sym")
    with IRCheckpoint(tmp_path) as ir:
        sizes = {name: tensor.shape for name, tensor in ir.tensors.items() if ".0.mlp." in name}
    hidden, inner = (records()["phi3"].config[k] for k in ("hidden_size", "intermediate_size"))
    assert sizes == {
        "model.layers.0.mlp.gate_proj.weight": (inner, hidden),
        "model.layers.0.mlp.up_proj.weight": (inner, hidden),
        "model.layers.0.mlp.down_proj.weight": (hidden, inner),
    }
