"""The tokenizer as OpenVINO models, for programs that open the exported folder without ovgen.

Built from the folder's own tokenizer.json with the steps of openvino_tokenizers, and described in
the models' runtime info as a conversion from transformers would. What those steps cannot do: take
a word that is a token as it is where the merges would not make it (ignore_merges), and keep a
text that spells a byte token, as <0x0A>, apart from that token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovgen.errors import ModelFormatError, StorageError

if TYPE_CHECKING:
    import openvino as ov
    from openvino_tokenizers.tokenizer_pipeline import BasePipelineStep

_NO_LIMIT = 2**31 - 1  # tokens; what the truncation step takes for "none"


def export_openvino_tokenizer(folder: Path) -> None:
    """Write openvino_tokenizer.xml/.bin and openvino_detokenizer.xml/.bin beside the folder's
    tokenizer.json, as `export_tokenizer` wrote it.

    Raises ModelFormatError (files that do not fit together) and StorageError.
    """
    from openvino_tokenizers.utils import update_rt_info_with_environment

    content = _read_json(folder / "tokenizer.json")
    config = _read_json(folder / "tokenizer_config.json")
    tokenizer, detokenizer = _build(content, config)
    template = folder / "chat_template.jinja"
    description = _runtime_info(content, config)
    if template.exists():
        description["chat_template"] = template.read_text(encoding="utf-8")
    for model, name in (tokenizer, "openvino_tokenizer"), (detokenizer, "openvino_detokenizer"):
        # Without the versions openvino-genai takes the models for old ones that cannot be told at
        # run time to leave special tokens out.
        update_rt_info_with_environment(model)
        for key, value in description.items():
            model.set_rt_info(value, key)
        _save(model, folder / f"{name}.xml")


def _build(content: dict[str, Any], config: dict[str, Any]) -> tuple[ov.Model, ov.Model]:
    import openvino as ov
    from openvino_tokenizers.tokenizer_pipeline import TokenizerPipeline
    from openvino_tokenizers.utils import change_inputs_type, change_outputs_type

    pipeline = TokenizerPipeline()
    pipeline.add_steps(_encoding_steps(content))
    tokens = list(pipeline[-1].vocab)
    pipeline.vocab = tokens
    pipeline.add_steps(_post_steps(content, config))
    pipeline.add_steps(_decoding_steps(content, tokens))
    graph = pipeline.get_tokenizer_ov_subgraph()
    # A template brings token_type_ids, which no language model here takes.
    outputs = [graph.output("input_ids"), graph.output("attention_mask")]
    tokenizer = ov.Model(outputs, graph.get_sinks(), graph.get_parameters(), "tokenizer")
    detokenizer = pipeline.get_detokenizer_ov_subgraph()
    return (
        change_outputs_type(tokenizer, ov.Type.i64),
        change_inputs_type(detokenizer, ov.Type.i64),
    )


def _encoding_steps(content: dict[str, Any]) -> list[BasePipelineStep]:
    """Special tokens, normalizers, splits and the BPE model."""
    from openvino_tokenizers import tokenizer_pipeline as steps

    added = steps.SpecialTokensSplit.from_string_iter(
        token["content"] for token in content["added_tokens"]
    )
    result: list[BasePipelineStep] = [added]
    for item in _sequence(content["normalizer"], "normalizers"):
        if item["type"] == "Prepend":
            result.append(steps.RegexNormalizationStep.prepend_regex(item["prepend"]))
        else:
            pattern = item["pattern"]["String"]
            result.append(steps.RegexNormalizationStep(pattern, item["content"]))
    for item in _sequence(content["pre_tokenizer"], "pretokenizers"):
        if item["type"] == "ByteLevel":
            result.append(steps.BytesToCharsStep())
        else:
            pattern = item["pattern"]["Regex"]
            # Not mergeable: one pattern after the other is not the same as either of them.
            result.append(steps.RegexSplitStep(pattern, behaviour="isolate", mergeable=False))
    result.append(steps.BPETokenizationStep.from_hf_json(content))
    return result


def _post_steps(content: dict[str, Any], config: dict[str, Any]) -> list[BasePipelineStep]:
    """Truncation (off unless the caller asks), the template's bos and eos, padding."""
    from openvino_tokenizers import tokenizer_pipeline as steps

    if content["post_processor"] is None:
        combine = steps.CombineSegmentsStep([steps.Sequence()])
    else:
        combine = steps.CombineSegmentsStep.from_hf_json_template_postprocessor(
            content["post_processor"]
        )
    limit = config.get("model_max_length", _NO_LIMIT) - combine.number_of_added_tokens
    pad = config.get("pad_token")
    return [
        steps.TruncationStep(max_length=min(limit, _NO_LIMIT)),
        combine,
        steps.PaddingStep(token=pad, _token_id=_token_ids(content).get(pad)),
    ]


def _decoding_steps(content: dict[str, Any], tokens: list[str]) -> list[BasePipelineStep]:
    """A table from ids to bytes, whose entries are joined and made valid UTF-8.

    The table does what tokenizer.json's decoder does token by token. The library's own step for
    bytes spoils every token of six characters in angle brackets, as <html>.
    """
    from openvino_tokenizers import tokenizer_pipeline as steps
    from openvino_tokenizers.constants import UTF8ReplaceMode
    from openvino_tokenizers.utils import apply_unicode_to_bytes, transform_unigram_token_to_bytes

    if content["decoder"]["type"] == "ByteLevel":
        table = [apply_unicode_to_bytes(token, return_corrupted_tokens=True) for token in tokens]
    else:
        table = [transform_unigram_token_to_bytes(token, byte_fallback=True) for token in tokens]
    result: list[BasePipelineStep] = [
        steps.VocabDecoderStep(
            table,
            skip_tokens=[token["id"] for token in content["added_tokens"] if token["special"]],
        ),
        steps.FuseStep(),
    ]
    if any(part["type"] == "Strip" for part in _sequence(content["decoder"], "decoders")):
        result.append(steps.RegexDecodingStep.strip_forward_space())
    return [*result, steps.UTF8ValidateStep(mode=UTF8ReplaceMode.REPLACE)]


def _sequence(item: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The parts of a component of tokenizer.json, which may be absent, one, or a sequence."""
    if item is None:
        return []
    parts: list[dict[str, Any]] = item[key] if item["type"] == "Sequence" else [item]
    return parts


def _token_ids(content: dict[str, Any]) -> dict[str | None, int]:
    return content["model"]["vocab"]  # type: ignore[no-any-return]


def _runtime_info(content: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What openvino-genai reads from the models: ids and the template of added tokens."""
    ids = _token_ids(content)
    info: dict[str, Any] = {
        f"{name}_token_id": ids[config[f"{name}_token"]]
        for name in ("bos", "eos", "pad")
        if f"{name}_token" in config
    }
    single = [-1]
    if (post := content["post_processor"]) is not None:
        info["original_post_processor_template"] = json.dumps(post)
        single = [
            -1 if "Sequence" in part else ids[part["SpecialToken"]["id"]] for part in post["single"]
        ]
    second = [i if i >= 0 else -2 for i in single]
    info["processed_post_processor_template"] = json.dumps(
        {
            "single": {"ids": single, "type_ids": [0] * len(single)},
            "pair": {"ids": single + second, "type_ids": [0] * len(single) + [1] * len(second)},
        }
    )
    info["add_special_tokens"] = info["skip_special_tokens"] = "True"
    return info


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise StorageError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except ValueError as exc:
        raise ModelFormatError(f"{path}: not JSON ({exc})") from exc
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path}: expected a JSON object")
    return content


def _save(model: ov.Model, path: Path) -> None:
    import openvino as ov

    try:
        ov.save_model(model, str(path), compress_to_fp16=False)
    except (OSError, RuntimeError) as exc:
        reason = str(exc).strip().splitlines()[-1:]
        raise StorageError(f"{path}: cannot be written ({''.join(reason)})") from exc
