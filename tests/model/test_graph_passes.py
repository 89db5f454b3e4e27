"""Graph passes on graphs that are small enough to compute by hand, and on every tiny model."""

from __future__ import annotations

import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.model.graph_passes import weight_group


def weights_model(*constants: tuple[ov.Type, list[int]]) -> ov.Model:
    results = []
    for element_type, shape in constants:
        data = ov.Tensor(element_type, ov.Shape(shape))
        node = op.convert(ov.op.Constant(data, shared_memory=False), "f32")
        results.append(op.result(op.relu(node)))
    return ov.Model(results, [], "weights")


@pytest.mark.parametrize(
    ("constants", "group"),
    [
        ([], None),
        ([(ov.Type.i8, [64, 32])], None),  # per channel
        ([(ov.Type.f32, [4, 4, 32])], None),
        ([(ov.Type.i8, [64, 2, 16])], 16),
        ([(ov.Type.u4, [64, 2, 32]), (ov.Type.u4, [64, 2, 1])], 32),  # with zero points
        ([(ov.Type.i4, [64, 4, 32]), (ov.Type.i8, [16, 2, 64])], 32),  # the greater part
        ([(ov.Type.i4, [16, 4, 32]), (ov.Type.u8, [64, 2, 64])], 64),
    ],
)
def test_weight_group(constants, group):
    assert weight_group(weights_model(*constants)) == group
