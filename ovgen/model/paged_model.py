"""From an IR folder to a compiled model with paged attention, and its KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov
from openvino import opset15 as op

from ovgen.engine_config import EngineConfig
from ovgen.model.compile_properties import has_own_head, head_properties, load_properties
from ovgen.model.graph_passes import copy_runtime_options, page_attention
from ovgen.model.kv_cache import BlockLayout, KVCache, block_layouts
from ovgen.model.kv_cache_size import kv_cache_blocks
from ovgen.model.loader import (
    CORE,
    Source,
    compile_graph,
    map_weights,
    prepare,
    read_ir,
)
from ovgen.model.mapped_weights import MappedWeights
from ovgen.model.sampled_tokens import gather_sampled_tokens
from ovgen.model.single_token import add_single_token_body
from ovgen.model.split_head import join_head, split_head

_ATTENTION = "PagedAttentionExtension"
_NUM_COMPUTED = 3  # of its inputs: queries, keys and values


@dataclass(frozen=True, slots=True)
class PagedModel:
    """A compiled model with paged attention, and what goes with it.

    Attributes:
        compiled: the model, or its body, whose output are hidden states.
        head: makes logits of them; None where ``compiled`` does so itself.
        kv_cache: that it computes with; it must outlive it.
        weights: the file's; they must outlive it.
        context_length: most tokens of a sequence.
        vocab_size: of the logits.
    """

    compiled: ov.CompiledModel
    head: ov.CompiledModel | None
    kv_cache: KVCache
    weights: MappedWeights
    context_length: int
    vocab_size: int


def load_paged_model(
    folder: Path,
    config: EngineConfig,
    num_blocks: int | None = None,
) -> PagedModel:
    """Compile the IR of a folder with paged attention. OpenVINO does not export such a model
    whole, so that it is in no cache.

    Args:
        folder: with the IR.
        config: of the engine.
        num_blocks: of the KV cache; by default what the config asks for.

    Raises:
        UnsupportedModelError: its attention cannot be paged.
        ModelNotFoundError, ModelFormatError, DeviceError, ConfigError: as of `load_model`.
    """
    source = Source.of(folder, config)
    weights = map_weights(source)
    model = read_ir(CORE, source.xml, weights)
    prepare(model, source.config)
    page_attention(model)
    gather_sampled_tokens(model, axis=0)
    vocab_size = source.vocab_size(model)
    properties = load_properties(CORE, source.config, model)
    layouts = _layouts(source, model, properties)
    if num_blocks is None:
        num_blocks = kv_cache_blocks(layouts, source.config, source.context_length)
    kv_cache = KVCache(layouts, num_blocks)
    with weights.dropping_pages():  # of what is packed already
        compiled, head = _compiled(source, model, properties, kv_cache)
    return PagedModel(compiled, head, kv_cache, weights, source.context_length, vocab_size)


def _compiled(
    source: Source, model: ov.Model, properties: Mapping[str, Any], kv_cache: KVCache
) -> tuple[ov.CompiledModel, ov.CompiledModel | None]:
    """The model, or its body and its head."""
    if source.config.device != "CPU":
        return compile_graph(source, model, properties), None
    head = split_head(model)
    # Constants of half precision would be converted, and so copied.
    if all(layout.element_type != ov.Type.f16 for layout in kv_cache.layouts):
        model = add_single_token_body(model, kv_cache.tensors)
    if head is not None and has_own_head(source.config, properties):
        on_head = head_properties(source.config, properties, head)
        return compile_graph(source, model, properties), compile_graph(source, head, on_head)
    if head is not None:
        join_head(model, head)  # outside the bodies, whose output is copied
    return compile_graph(source, model, properties), None


def _layouts(source: Source, model: ov.Model, properties: Mapping[str, Any]) -> list[BlockLayout]:
    """How the device lays out a cache for a graph: that of its attention alone, to be quick."""
    probe = model.clone()
    results, inputs = [], []
    for node in probe.get_ordered_ops():
        if node.get_type_name() == _ATTENTION:
            for port in node.inputs()[:_NUM_COMPUTED]:
                value = port.get_source_output()
                inputs.append(op.parameter(value.get_partial_shape(), value.get_element_type()))
                port.replace_source_output(inputs[-1].output(0))
            results.append(op.result(node.output(0)))
    attention = ov.Model(results, [*inputs, *probe.get_parameters()], "attention")
    copy_runtime_options(model, attention)
    return block_layouts(compile_graph(source, attention, properties))
