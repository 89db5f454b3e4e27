"""Mixtures of experts against the same in numpy, token by token."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.export.graph_moe import Routing, mixture, normalized, pick, swish
from ovgen.export.graph_weights import Value, const

EXPERTS, HIDDEN, PICKED = 6, 8, 2


def compute(value: Value, inputs: list[Value], *arrays: np.ndarray) -> np.ndarray:
    compiled = ov.Core().compile_model(
        ov.Model([value], inputs), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(list(arrays))[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 4)])
def test_a_mixture(shape: tuple[int, int]):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape, HIDDEN)).astype(np.float32)
    scores = rng.uniform(0.1, 1, (x.shape[0] * x.shape[1], EXPERTS)).astype(np.float32)
    matrices = rng.standard_normal((EXPERTS, HIDDEN, HIDDEN)).astype(np.float32)

    tokens = op.parameter([-1, -1, HIDDEN], ov.Type.f32)
    given = op.parameter([-1, EXPERTS], ov.Type.f32)
    routing = pick(given, PICKED)
    routing = Routing(routing.experts, normalized(routing.weights))
    result = mixture(
        tokens,
        EXPERTS,
        routing,
        lambda each: op.matmul(swish(each), const(matrices, np.float32), False, True),
    )

    expected = np.zeros((len(scores), HIDDEN))
    for row, (token, score) in enumerate(zip(x.reshape(-1, HIDDEN), scores, strict=True)):
        best = np.argsort(score)[-PICKED:]
        for expert in best:
            weight = score[expert] / score[best].sum()
            expected[row] += weight * matrices[expert] @ (token / (1 + np.exp(-token)))
    found = compute(result, [tokens, given], x, scores)
    np.testing.assert_allclose(found, expected.reshape(x.shape), atol=1e-5)


def test_a_swish_with_a_beta():
    x = op.parameter([-1, 3], ov.Type.f32)
    array = np.array([[-1.0, 0.5, 2.0]], np.float32)
    found = compute(swish(x, 1.702), [x], array)
    np.testing.assert_allclose(found, array / (1 + np.exp(-1.702 * array)), rtol=1e-5)
