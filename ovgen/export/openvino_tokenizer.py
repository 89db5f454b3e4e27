"""The tokenizer as OpenVINO models, for programs that open the exported folder without ovgen.

Built from the folder's own tokenizer.json with the steps of openvino_tokenizers, held against it,
and described in the models' runtime info as a conversion from transformers would. What those steps
cannot do: keep a text that spells a byte token, as <0x0A>, apart from that token; take a word that
is a token as it is where the merges would not make it (ignore_merges, rare words of Llama 3);
compose (NFC) a mark with a letter that has one already; and of WordPiece, lower letters without
folding them, as the long s, and count a word's characters instead of its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovgen.errors import StorageError
from ovgen.export.openvino_detokenizer import decoding_steps
from ovgen.export.openvino_tokenizer_steps import (
    NotExpressibleError,
    Part,
    encoding_steps,
    template,
    token_ids,
)
from ovgen.export.tokenizer_checks import (
    expectations,
    first_difference,
    normal_form,
    num_unmerged,
    read_json,
)
from ovgen.text.tokenizer_config import read_text

if TYPE_CHECKING:
    import openvino as ov
    from openvino_tokenizers.tokenizer_pipeline import BasePipelineStep

_NO_LIMIT = 2**31 - 1  # tokens; what the truncation step takes for "none"


def export_openvino_tokenizer(folder: Path) -> str | None:
    """Write openvino_tokenizer.xml/.bin and openvino_detokenizer.xml/.bin beside the folder's
    tokenizer.json.

    They are held against tokenizer.json on some texts: models that do something else are not
    written.

    Returns:
        None; or a line for people to read: that the models are left out, and why, or what they do
        otherwise.

    Raises:
        ModelFormatError: the folder's files do not fit together.
        StorageError: a file cannot be read, or not be written.
    """
    content = normal_form(folder / "tokenizer.json")
    config = _read_config(folder)
    try:
        models = _build(content, config)
        description = _runtime_info(content, config)
        unmerged = num_unmerged(content)
        content.clear()  # hundreds of megabytes, as those that the next line takes and gives back
        expected = expectations(folder / "tokenizer.json")
        different = first_difference(expected, *_run(*models))
    except NotExpressibleError as exc:
        return f"no OpenVINO tokenizer: it cannot express {exc}"
    except Exception as exc:  # all that the two libraries raise
        reason = " ".join(str(exc).split()) or type(exc).__name__
        return f"no OpenVINO tokenizer: openvino_tokenizers cannot do it ({reason:.300})"
    if different is not None:
        return f"no OpenVINO tokenizer: it treats {different!r:.60} otherwise than tokenizer.json"
    if (source := _chat_template(folder, config)) is not None:
        description["chat_template"] = source
    for model, name in zip(models, ("openvino_tokenizer", "openvino_detokenizer"), strict=True):
        _describe(model, description)
        _save(model, folder / f"{name}.xml")
    if unmerged:
        return (
            f"the OpenVINO tokenizer cuts {unmerged:,} words that are tokens into several: their "
            "merges do not make them, and it cannot ignore its merges as tokenizer.json does"
        )
    return None


def _read_config(folder: Path) -> Part:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


def _chat_template(folder: Path, config: Part) -> str | None:
    """The one for chats without tools, where there are several."""
    source: Any = read_text(folder / "chat_template.jinja")
    if source is None:
        path = folder / "chat_template.json"
        source = (read_json(path) if path.exists() else config).get("chat_template")
    if isinstance(source, list):
        named = [item for item in source if isinstance(item, dict)]
        source = next((item.get("template") for item in named if item.get("name") == "default"), "")
    return source if isinstance(source, str) and source else None


def _build(content: Part, config: Part) -> tuple[ov.Model, ov.Model]:
    import openvino as ov
    from openvino_tokenizers.tokenizer_pipeline import TokenizerPipeline
    from openvino_tokenizers.utils import change_inputs_type, change_outputs_type

    pipeline = TokenizerPipeline()
    steps = encoding_steps(content)
    pipeline.add_steps(steps)
    begin = getattr(steps[0], "regex_search_pattern", None)
    pipeline.vocab = pipeline[-1].vocab
    pipeline.add_steps(_post_steps(content, config))
    pipeline.add_steps(decoding_steps(content))
    pipeline.finalize()
    if begin is not None:  # it puts a pattern of its own there, which is not as exact
        steps[0].regex_search_pattern = begin
    graph = pipeline.get_tokenizer_ov_subgraph()
    # A template brings token_type_ids, which no language model here takes.
    outputs = [graph.output("input_ids"), graph.output("attention_mask")]
    tokenizer = ov.Model(outputs, graph.get_sinks(), graph.get_parameters(), "tokenizer")
    detokenizer = pipeline.get_detokenizer_ov_subgraph()
    return (
        change_outputs_type(tokenizer, ov.Type.i64),
        change_inputs_type(detokenizer, ov.Type.i64),
    )


def _post_steps(content: Part, config: Part) -> list[BasePipelineStep]:
    """Truncation (off unless the caller asks), the template's tokens, padding."""
    from openvino_tokenizers import tokenizer_pipeline as library

    around: list[Any] = []
    for item in template(content):
        if item is None:
            around.append(library.Sequence(token_type_id=0))
        else:
            around.append(library.AddToken(token=item[0], _token_id=item[1], token_type_id=0))
    combine = library.CombineSegmentsStep(around)
    limit = config.get("model_max_length", _NO_LIMIT)
    is_limit = isinstance(limit, int | float) and 0 < limit < _NO_LIMIT
    limit = int(limit) if is_limit else _NO_LIMIT
    pad = _token_text(config.get("pad_token"))
    return [
        library.TruncationStep(max_length=limit - combine.number_of_added_tokens),
        combine,
        library.PaddingStep(
            token=pad,
            _token_id=token_ids(content).get(pad or ""),
            pad_right=config.get("padding_side") != "left",
        ),
    ]


def _run(
    tokenizer: ov.Model, detokenizer: ov.Model
) -> tuple[Callable[[str], Sequence[int]], Callable[[Sequence[int]], str]]:
    """What the two models do."""
    import openvino as ov

    core = ov.Core()
    encoder, decoder = (core.compile_model(model, "CPU") for model in (tokenizer, detokenizer))
    return (
        lambda text: encoder([text])["input_ids"][0].tolist(),
        lambda ids: str(decoder([list(ids)])["string_output"][0]),
    )


def _runtime_info(content: Part, config: Part) -> dict[str, Any]:
    """What openvino-genai reads from the models: ids and the template of added tokens."""
    ids = token_ids(content)
    named = {name: _token_text(config.get(f"{name}_token")) for name in ("bos", "eos", "pad")}
    info: dict[str, Any] = {
        f"{name}_token_id": ids[token] for name, token in named.items() if token in ids
    }
    single = [-1 if item is None else item[1] for item in template(content)]
    if single != [-1]:
        info["original_post_processor_template"] = json.dumps(content["post_processor"])
    second = [i if i >= 0 else -2 for i in single]
    info["processed_post_processor_template"] = json.dumps(
        {
            "single": {"ids": single, "type_ids": [0] * len(single)},
            "pair": {"ids": single + second, "type_ids": [0] * len(single) + [1] * len(second)},
        }
    )
    info["add_special_tokens"] = info["skip_special_tokens"] = "True"
    return info


def _token_text(value: Any) -> str | None:
    """A token's text, as tokenizer_config.json has it: alone, or in an object."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _describe(model: ov.Model, description: Mapping[str, Any]) -> None:
    from openvino_tokenizers.utils import update_rt_info_with_environment

    # Without the versions openvino-genai takes the models for old ones that cannot be told at
    # run time to leave special tokens out.
    update_rt_info_with_environment(model)
    for key, value in description.items():
        model.set_rt_info(value, key)


def _save(model: ov.Model, path: Path) -> None:
    import openvino as ov

    try:
        ov.save_model(model, str(path), compress_to_fp16=False)
    except (OSError, RuntimeError) as exc:
        reason = str(exc).strip().splitlines()[-1:]
        raise StorageError(f"{path}: cannot be written ({''.join(reason)})") from exc
