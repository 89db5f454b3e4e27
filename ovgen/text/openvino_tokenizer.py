"""The tokenizer protocol over the pair openvino_tokenizer.xml and openvino_detokenizer.xml.

The package openvino_tokenizers is not imported, as that changes OpenVINO for the whole process:
only its extension library is loaded, into a Core of our own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.errors import ModelFormatError, RequestError, UnsupportedModelError
from ovgen.text.tokenizer import check_text, unknown_id_error
from ovgen.text.tokenizer_config import TokenizerConfig

_NO_LIMIT = 2**31 - 1  # tokens


class OpenVINOTokenizer:
    """An OpenVINO tokenizer and detokenizer: compiled models with string tensors.

    Their graphs fix whether special tokens are added and skipped; an input is put in that place so
    that each call can choose. Truncation and the clean-up of spaces are taken out, so that the text
    is what the tokens say, as with tokenizer.json.

    Vocabulary entries are bytes here: `id_to_token` gives a space as " ", not as "Ġ" or "▁", and
    bytes that are not UTF-8 as "\\xe4".
    """

    def __init__(self, tokenizer: Path, detokenizer: Path, config: TokenizerConfig) -> None:
        core = _core()
        encoder = _read_model(core, tokenizer)
        decoder = _read_model(core, detokenizer)
        vocab_decoder = _vocab_decoder(decoder, detokenizer)
        self._bounds = [_constant(vocab_decoder, i, detokenizer) for i in (1, 2)]  # [vocab] int32
        self._bytes = _constant(vocab_decoder, 3, detokenizer).tobytes()
        self._special_ids = _choose_skipped_tokens(decoder, vocab_decoder)
        _remove_clean_up(decoder)
        _choose_added_tokens(encoder)
        _remove_truncation(encoder)
        self._ids_type = decoder.inputs[0].get_element_type().to_dtype()
        self._encoder = _compile(core, encoder, tokenizer)
        self._decoder = _compile(core, decoder, detokenizer)
        self._lock = Lock()  # an infer request serves one thread at a time
        self._bos_token = config.special_token("bos_token")
        self._eos_token = config.special_token("eos_token")

    @property
    def vocab_size(self) -> int:
        return len(self._bounds[0])

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @property
    def bos_token(self) -> str | None:
        return self._bos_token

    @property
    def eos_token(self) -> str | None:
        return self._eos_token

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        check_text(text)
        if text.endswith("\0"):
            raise RequestError(
                "text to tokenize ends with a NUL character, which OpenVINO's Python strings drop; "
                "remove it"
            )
        prompt = ov.Tensor(ov.Type.string, ov.Shape([1]))
        prompt.str_data = [text]
        switch = np.array(add_special_tokens, np.int32)
        inputs = [prompt, switch][: len(self._encoder.model_inputs)]
        with self._lock:
            try:
                outputs = self._encoder.infer(dict(enumerate(inputs)))
            except RuntimeError as exc:
                raise RequestError(
                    f"the tokenizer cannot encode this text: {_one_line(exc)}"
                ) from exc
            ids: npt.NDArray[Any] = outputs["input_ids"][0]
            mask = outputs["attention_mask"][0]  # 0 where padded
        token_ids: list[int] = ids[mask != 0].tolist()
        return token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if not token_ids:
            return ""
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise unknown_id_error(token_id, self.vocab_size)
        ids = np.array([token_ids], self._ids_type)  # [1, tokens]
        skipped = np.array(sorted(self._special_ids) if skip_special_tokens else [], np.int32)
        with self._lock:
            try:
                self._decoder.infer({0: ids, 1: skipped})
            except RuntimeError as exc:
                raise RequestError(
                    f"the tokenizer cannot decode these ids: {_one_line(exc)}"
                ) from exc
            return str(self._decoder.get_output_tensor(0).str_data[0])

    def token_to_id(self, token: str) -> int | None:
        return self._ids_by_token.get(token.encode(errors="surrogatepass"))

    def id_to_token(self, token_id: int) -> str | None:
        if not 0 <= token_id < self.vocab_size:
            return None
        return self._token(token_id).decode(errors="backslashreplace")

    def _token(self, token_id: int) -> bytes:
        return self._bytes[self._bounds[0][token_id] : self._bounds[1][token_id]]

    @cached_property
    def _ids_by_token(self) -> dict[bytes, int]:
        return {self._token(token_id): token_id for token_id in range(self.vocab_size)}


@cache
def _core() -> ov.Core:
    """One core with the tokenizers' operations, kept for good; see `ovgen.model.loader`'s."""
    core = ov.Core()
    core.add_extension(str(_extension_library()))
    return core


def _extension_library() -> Path:
    spec = find_spec("openvino_tokenizers")
    if spec is None or spec.origin is None:
        raise UnsupportedModelError(
            "a model with an OpenVINO tokenizer needs the package openvino-tokenizers: "
            "pip install openvino-tokenizers"
        )
    names = {
        "win32": "openvino_tokenizers.dll",
        "darwin": "libopenvino_tokenizers.dylib",
    }
    name = names.get(sys.platform, "libopenvino_tokenizers.so")
    return Path(spec.origin).parent / "lib" / name


def _read_model(core: ov.Core, path: Path) -> ov.Model:
    try:
        return core.read_model(str(path))
    except RuntimeError as exc:
        raise ModelFormatError(f"{path} is not a usable OpenVINO model: {_one_line(exc)}") from exc


def _compile(core: ov.Core, model: ov.Model, path: Path) -> ov.InferRequest:
    try:
        model.validate_nodes_and_infer_types()
        return core.compile_model(model, "CPU").create_infer_request()
    except RuntimeError as exc:
        raise ModelFormatError(f"{path} cannot be compiled: {_one_line(exc)}") from exc


def _vocab_decoder(model: ov.Model, path: Path) -> ov.Node:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "VocabDecoder" and node.get_input_size() == 5:
            return node
    raise UnsupportedModelError(
        f"{path} has no VocabDecoder with five inputs; convert the tokenizer anew with "
        "openvino-tokenizers 2024.4 or later, or put its tokenizer.json into the folder"
    )


def _constant(node: ov.Node, index: int, path: Path) -> npt.NDArray[Any]:
    source = node.input(index).get_source_output().get_node()
    if source.get_type_name() != "Constant":
        raise UnsupportedModelError(
            f"{path}: input {index} of VocabDecoder is a {source.get_type_name()}, not a Constant"
        )
    return np.array(source.get_data())


def _choose_skipped_tokens(model: ov.Model, vocab_decoder: ov.Node) -> frozenset[int]:
    """Make the skipped ids an input; returns those that the file lists."""
    source = vocab_decoder.input(4).get_source_output().get_node()
    while source.get_type_name() != "Constant":  # a Slice of the list switches it on or off
        source = source.input(0).get_source_output().get_node()
    skipped = ov.opset13.parameter([-1], ov.Type.i32)
    vocab_decoder.input(4).replace_source_output(skipped.output(0))
    model.add_parameters([skipped])
    return frozenset(source.get_data().tolist())


def _choose_added_tokens(model: ov.Model) -> None:
    """Make it an input, 0 or 1, whether the tokens of CombineSegments are added.

    Its inputs are triples of begins, ends and ids; the ids of an added token are a constant, of
    which the first `end` are used.
    """
    switch = ov.opset13.parameter([], ov.Type.i32)
    ends = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "CombineSegments":
            for index in range(0, node.get_input_size() - 1, 3):
                ids = node.input(index + 2).get_source_output()
                if ids.get_node().get_type_name() == "Constant":
                    ends.append((node.input(index + 1), ids.get_shape()[0]))
    for end, count in ends:
        size = ov.opset13.constant(count, ov.Type.i32)
        end.replace_source_output(ov.opset13.multiply(switch, size).output(0))
    if ends:
        model.add_parameters([switch])


def _remove_truncation(model: ov.Model) -> None:
    """Lift the limit: it would cut prompts silently."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Truncate":
            limit = node.input(3)
            select = limit.get_source_output().get_node()
            if select.get_type_name() == "Select":  # by a state, which must keep its reader
                limit = select.input(1)
            no_limit = ov.opset13.constant(_NO_LIMIT, ov.Type.i32)
            limit.replace_source_output(no_limit.output(0))


def _remove_clean_up(model: ov.Model) -> None:
    """Bypass the step that removes spaces before punctuation: it changes text given out before."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "RegexNormalization":
            continue
        pattern = node.input(3).get_source_output().get_node()
        if pattern.get_type_name() == "Constant" and b"(n't)" in pattern.get_data().tobytes():
            for index, output in enumerate(node.outputs()):
                output.replace(node.input(index).get_source_output())


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())
