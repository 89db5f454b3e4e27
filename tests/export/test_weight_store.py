"""Weights that are streamed to the .bin file of an IR."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.errors import StorageError
from ovgen.export.weight_store import MODEL_BIN, MODEL_XML, WeightStore


def constants(folder: Path) -> dict[str, np.ndarray]:
    """Those of a saved model, by name."""
    model = ov.Core().read_model(folder / MODEL_XML)
    nodes = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    return {node.get_friendly_name(): node.get_data() for node in nodes}


def model_of(store: WeightStore, *extra: ov.Node) -> ov.Model:
    """A model that has all weights as results."""
    nodes = [*store.placeholders, *extra]
    results = [op.result(op.convert(node, "f32")) for node in nodes]
    return ov.Model(results, store.placeholders, "test")


def test_weights_become_constants(tmp_path: Path) -> None:
    floats = np.arange(24, dtype=np.float16).reshape(4, 6)
    integers = np.arange(-3, 3, dtype=np.int8).reshape(3, 2)
    with WeightStore(tmp_path) as store:
        first = store.reserve("first", ov.Type.f16, [4, 6])
        second = store.reserve("second", ov.Type.i8, [3, 2])
        second.write(1, integers[1:])
        first.write(0, floats)
        second.write(0, integers[:1])
        small = op.constant(np.array([5.5, 6.5], np.float32))
        small.set_friendly_name("small")
        store.save(model_of(store, small))
    saved = constants(tmp_path)
    np.testing.assert_array_equal(saved["first"], floats)
    np.testing.assert_array_equal(saved["second"], integers)
    np.testing.assert_array_equal(saved["small"], [5.5, 6.5])
    assert {path.name for path in tmp_path.iterdir()} == {MODEL_XML, MODEL_BIN}
    model = ov.Core().read_model(tmp_path / MODEL_XML)
    assert model.inputs == []


@pytest.mark.parametrize("as_stored", [True, False])
def test_the_device_keeps_weights_as_they_are_stored(tmp_path: Path, as_stored: bool) -> None:
    with WeightStore(tmp_path) as store:
        slot = store.reserve("w", ov.Type.f16, [64, 64], as_stored=as_stored)
        slot.write(0, np.ones((64, 64), np.float16))
        x = op.parameter([-1, 64], ov.Type.f32)
        product = op.matmul(x, op.convert(slot.node, "f32"), False, True)
        store.save(ov.Model([op.result(product)], [x, *store.placeholders], "test"))
    model = ov.Core().read_model(tmp_path / MODEL_XML)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    types = {
        node.input_value(1).get_element_type()
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    }
    assert types == {ov.Type.f16 if as_stored else ov.Type.f32}


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    with WeightStore(tmp_path) as store:
        for value in (1, 2):
            slot = store.reserve("same", ov.Type.u8, [1, 1])
            slot.write(0, np.array([[value]], np.uint8))
        store.save(model_of(store))
    assert sorted(int(value[0, 0]) for value in constants(tmp_path).values()) == [1, 2]


def test_four_bit_rows(tmp_path: Path) -> None:
    with WeightStore(tmp_path) as store:
        slot = store.reserve("codes", ov.Type.i4, [2, 3, 2])
        slot.write(1, np.array([[0x21, 0x43, 0xF5]], np.uint8))
        slot.write(0, np.array([[0x10, 0x32, 0x54]], np.uint8))
        store.save(model_of(store))
    compiled = ov.Core().compile_model(tmp_path / MODEL_XML, "CPU")
    np.testing.assert_array_equal(
        compiled([])[0].reshape(2, 6), [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, -1]]
    )


def test_threads_write_side_by_side(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (64, 4096)).astype(np.uint8)
    with WeightStore(tmp_path) as store:
        slot = store.reserve("w", ov.Type.u8, [64, 4096])

        def write(start: int) -> None:
            for row in range(start, 64, 4):
                slot.write(row, values[row : row + 1])

        threads = [threading.Thread(target=write, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.save(model_of(store))
    np.testing.assert_array_equal(constants(tmp_path)["w"], values)


def test_a_graph_that_was_not_saved_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(model: ov.Model, path: Path, compress_to_fp16: bool) -> None:
        path.write_text("<net>")
        path.with_suffix(".bin").write_bytes(b"")

    monkeypatch.setattr(ov, "save_model", half)
    with WeightStore(tmp_path) as store:
        store.reserve("w", ov.Type.u8, [1, 1])
        with pytest.raises(StorageError, match="was not written whole"):
            store.save(model_of(store))
    assert not (tmp_path / "draft.xml").exists()
