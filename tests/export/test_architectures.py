"""Every architecture from tiny safetensors folders: transformers' logits and greedy tokens, on the
stateful graph and with paged attention."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import tiny_checkpoints
from tiny_checkpoints import Record, records, write_checkpoint

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import Request, Sequence
from ovgen.engine_config import EngineConfig
from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.architectures import ARCHITECTURES, build_model
from ovgen.export.exporter import open_checkpoint
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import WeightStore
from ovgen.llm import LLM
from ovgen.model.loader import load_model
from ovgen.model.paged_runner import PagedRunner
from ovgen.model.stateful_runner import StatefulRunner

NAMES = list(records())
# What PagedAttention does not compute, and the verdict on it: soft caps, and rotary factors that
# depend on the length of a sequence, where a batch has several.
NOT_PAGED = {
    "gemma2": "No ScaledDotProductAttention operation observed",
    "phi3_longrope": "logits after 96 tokens differ",
    "phi3_partial": "logits after 96 tokens differ",
}
# Their factors follow the furthest position of a step.
NOT_IN_CHUNKS = ("phi3_longrope", "phi3_partial")
EXACT = {"precision": "exact", "properties": {"CACHE_DIR": ""}}


@pytest.fixture(scope="module", params=NAMES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A record's name and its IR folder."""
    source, folder = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("ir")
    export(records()[request.param], source, folder, "fp32")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((source / file).read_bytes())
    return request.param, folder


def export(record: Record, source: Path, folder: Path, weights: str) -> None:
    write_ir(write_checkpoint(source, record), folder, weights)


def write_ir(source: Path, folder: Path, weights: str) -> None:
    with open_checkpoint(source) as checkpoint, WeightStore(folder) as store:
        store.save(build_model(checkpoint, WeightReader(checkpoint, weights, store)))


def greedy_tokens(llm: LLM, name: str, together: bool) -> list[list[int]]:
    record = records()[name]
    count = len(record.tokens[0])
    prompts = [record.prompts] if together else [[prompt] for prompt in record.prompts]
    outputs = [output for some in prompts for output in llm.generate(some, max_new_tokens=count)]
    return [list(output.token_ids) for output in outputs]


def logits_after(
    runner: StatefulRunner | PagedRunner, prompt: list[int], number: int
) -> np.ndarray:
    """The logits of all positions of a prompt."""
    sequence = Sequence(number, tuple(prompt))
    if isinstance(runner, PagedRunner):
        sequence.block_table = list(range(-(-len(prompt) // runner.block_size)))
    request = Request(number, tuple(prompt), 1, frozenset(), None, [sequence])
    item = ScheduledSequence(request, sequence, len(prompt), len(prompt))
    runner.start(ScheduledBatch((item,)))
    logits = runner.wait(60.0)
    assert logits is not None
    return logits.copy()


def check_logits(runner: StatefulRunner | PagedRunner, name: str) -> None:
    last, first = tiny_checkpoints.logits(name)
    for number, (prompt, wanted) in enumerate(zip(records()[name].prompts, last, strict=True)):
        found = logits_after(runner, prompt, number)
        np.testing.assert_allclose(found[-1], wanted, atol=1e-4, rtol=0)
        if number == 0:
            np.testing.assert_allclose(found, first, atol=1e-4, rtol=0)


def test_transformers_logits(exported: tuple[str, Path]):
    name, folder = exported
    loaded = load_model(folder, EngineConfig(precision="exact"), None)
    check_logits(StatefulRunner(loaded.compiled, loaded.weights), name)


def test_transformers_tokens_on_the_stateful_graph(exported: tuple[str, Path]):
    name, folder = exported
    budget = 1024 if name in NOT_IN_CHUNKS else 7
    with LLM(folder, attention_backend="stateful", token_budget=budget, **EXACT) as llm:
        assert greedy_tokens(llm, name, together=False) == records()[name].tokens


def test_transformers_tokens_and_logits_with_paged_attention(exported: tuple[str, Path]):
    name, folder = exported
    options = {"attention_backend": "paged", "token_budget": 7, **EXACT}
    if name in NOT_PAGED:
        with pytest.raises(UnsupportedModelError, match=NOT_PAGED[name]):
            LLM(folder, **options)
        return
    with LLM(folder, **options) as llm:
        assert greedy_tokens(llm, name, together=True) == records()[name].tokens
        check_logits(llm._service.open()._runner, name)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("name", ["llama_tied", "gpt2_scaled", "gpt_oss"])
def test_half_precision_in_several_files(name: str, dtype: str, tmp_path: Path):
    """The records' weights are exact in each of them."""
    source = write_checkpoint(tmp_path / "checkpoint", records()[name], dtype, num_shards=3)
    write_ir(source, tmp_path, "exact")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    loaded = load_model(tmp_path, EngineConfig(precision="exact"), None)
    found = logits_after(
        StatefulRunner(loaded.compiled, loaded.weights), records()[name].prompts[0], 0
    )
    np.testing.assert_allclose(found, tiny_checkpoints.logits(name)[1], atol=1e-4, rtol=0)


def test_every_architecture_has_a_record():
    known = {record.config["model_type"] for record in records().values()}
    assert known == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "gpt_oss_mxfp4"])
@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8_sym", "int8_asym", "int4_asym"])
def test_only_the_picked_experts_are_computed(name: str, weights: str, tmp_path: Path):
    export(records()[name], tmp_path / "checkpoint", tmp_path, weights)
    compiled = ov.Core().compile_model(tmp_path / "openvino_model.xml", "CPU")
    kinds = Counter(
        node.get_rt_info()["layerType"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
    )
    layers = records()[name].config["num_hidden_layers"]
    assert kinds["GatherMatmul"] == layers * (2 if name.startswith("gpt_oss") else 3)
    assert kinds["Tile"] == 0


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, .* from 1 to 4"),
        ("qwen3_moe", {"num_experts": 0}, "num_experts is 0, expected an integer from 1"),
        ("qwen3_moe", {"mlp_only_layers": [-1]}, "mlp_only_layers is -1, expected a list"),
        ("gptj", {"rotary_dim": 7}, "rotary_dim is 7, expected an even number"),
        ("gptj", {"rotary_dim": 18}, "rotary_dim is 18, expected an integer from 1 to 16"),
        ("falcon_new", {"num_kv_heads": 3}, "num_attention_heads is 4, expected a multiple of"),
        ("gpt2", {"n_embd": 60}, "'wte.weight' has shape .* the config asks for"),
    ],
)
def test_fields_that_do_not_fit(name: str, changed: dict[str, Any], says: str, tmp_path: Path):
    record = records()[name]
    source = replace(record, config=record.config | changed)
    with pytest.raises(ModelFormatError, match=says):
        export(source, tmp_path / "checkpoint", tmp_path, "fp32")


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("mpt", {"attn_config": {"alibi": False}}, r"attn_config\.alibi is False, which cannot be"),
        ("mpt", {"logit_scale": 0.5}, "logit_scale is 0.5, which cannot be exported"),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act is 'gelu', which cannot be exported"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit is 5.0, .* supported: 7.0"),
        ("falcon_new", {"parallel_attn": False}, "parallel_attn is False, which cannot"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False"),
    ],
)
def test_variants_that_are_not_built(name: str, changed: dict[str, Any], says: str, tmp_path: Path):
    record = records()[name]
    source = replace(record, config=record.config | changed)
    with pytest.raises(UnsupportedModelError, match=says):
        export(source, tmp_path / "checkpoint", tmp_path, "fp32")


@pytest.mark.parametrize("name", ["gpt2", "bloom", "mpt_clipped", "gptj", "mixtral", "gpt_oss"])
def test_beams_and_rows_of_several_lengths(name: str, tmp_path: Path):
    """The stateful graph reorders and pads its rows, PagedAttention has a row for each."""
    source = tmp_path / "checkpoint"
    export(records()[name], source, tmp_path, "fp32")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((source / file).read_bytes())
    prompt, ends = records()[name].prompts[1], [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
    found = []
    for backend in ("stateful", "paged"):
        with LLM(tmp_path, attention_backend=backend, **EXACT) as llm:
            beams = llm.generate(prompt, num_beams=4, num_return_sequences=4, max_new_tokens=12)
            scores = [score.logprobs for score in llm.score(prompt, ends)]
            found.append(([output.token_ids for output in beams.outputs], scores))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
