"""The parts of a tokenizer.json as steps of openvino_tokenizers, or the reason why there is none.

Works on the normal form that `tokenizers` writes, in which every field is there. What the library
does to a text in one place, its steps do in groups: normalizers, then splits, then the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from openvino_tokenizers.tokenizer_pipeline import BasePipelineStep

Steps: TypeAlias = "list[BasePipelineStep]"
Part: TypeAlias = dict[str, Any]

_GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"[\p{P}\$\+<=>\^`\|~]"
# What BertNormalizer takes away, and what it takes for Chinese.
_CONTROLS = r"\x{FFFD}|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]"
_HAN = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B920}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
_BEHAVIORS = {
    "Isolated": "isolate",
    "Removed": "remove",
    "MergedWithPrevious": "mergedwithprevious",
    "MergedWithNext": "mergedwithnext",
    "Contiguous": "contiguous",
}
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


class NotExpressibleError(Exception):
    """The steps have nothing that does the same; the message says to what."""


def parts_of(item: Part | None, key: str) -> list[Part]:
    """The parts of a component, which may be absent, one, or a sequence of sequences."""
    if item is None:
        return []
    if item["type"] != "Sequence":
        return [item]
    return [part for inner in item[key] for part in parts_of(inner, key)]


def encoding_steps(content: Part) -> Steps:
    """Added tokens, normalizers, splits and the model."""
    first, splits = _split_steps(content)
    steps: Steps = [*first, *_added_steps(content)]
    for part in parts_of(content["normalizer"], "normalizers"):
        steps += _normalizer_steps(part)
    return [*steps, *splits, _model_step(content)]


def template(content: Part) -> list[tuple[str, int] | None]:
    """What goes around a text: tokens with their ids, and None where the text itself is."""
    found: list[tuple[str, int] | None] | None = None
    for part in parts_of(content["post_processor"], "processors"):
        kind = part["type"]
        if kind == "ByteLevel":  # it moves offsets, not tokens
            continue
        if found is not None:
            raise NotExpressibleError("two post-processors that add tokens")
        if kind == "TemplateProcessing":
            found = []
            for item in part["single"]:
                if "Sequence" in item:
                    found.append(None)
                else:
                    name = item["SpecialToken"]["id"]
                    special = part["special_tokens"][name]
                    found += list(zip(special["tokens"], special["ids"], strict=True))
        elif kind in ("BertProcessing", "RobertaProcessing"):
            found = [tuple(part["cls"]), None, tuple(part["sep"])]
        else:
            raise NotExpressibleError(f"post-processor {kind}")
    found = [None] if found is None else found
    if found.count(None) != 1:
        raise NotExpressibleError("a template with other than one text")
    return found


def token_ids(content: Part) -> dict[str, int]:
    """All tokens, added ones included."""
    vocab = content["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram
        vocab = {token: i for i, (token, _) in enumerate(vocab)}
    return {**vocab, **{token["content"]: token["id"] for token in content["added_tokens"]}}


def _added_steps(content: Part) -> Steps:
    from openvino_tokenizers.tokenizer_pipeline import SpecialToken, SpecialTokensSplit

    added = content["added_tokens"]
    if not added:  # the library's models count on what their split adds to the text
        raise NotExpressibleError("a tokenizer without added tokens")
    if any(token["single_word"] for token in added):
        raise NotExpressibleError("added tokens that are found as whole words alone")
    tokens = [SpecialToken(one["content"], one["lstrip"], one["rstrip"]) for one in added]
    return [SpecialTokensSplit(tokens)]


def _normalizer_steps(part: Part) -> Steps:
    from openvino_tokenizers import tokenizer_pipeline as library

    kind = part["type"]
    regex = library.RegexNormalizationStep
    if kind in _FORMS:
        return [library.NormalizeUnicode(kind)]
    if kind == "Lowercase":
        return [library.CaseFoldStep()]
    if kind == "StripAccents":
        return [regex.strip_accents_regex()]
    if kind == "Strip" and (part["strip_left"] or part["strip_right"]):
        return [regex.strip_regex(part["strip_left"], part["strip_right"])]
    if kind == "Prepend":
        return [regex.prepend_regex(_replacement(part["prepend"]))]
    if kind == "Replace":
        return [regex(_pattern(part["pattern"]), _replacement(part["content"]))]
    if kind == "BertNormalizer":
        return _bert_normalizer(part)
    raise NotExpressibleError(f"normalizer {kind}")


def _bert_normalizer(part: Part) -> Steps:
    from openvino_tokenizers import tokenizer_pipeline as library

    regex = library.RegexNormalizationStep
    steps: Steps = []
    if part["clean_text"]:
        steps += [regex(_CONTROLS, ""), regex.replace_whitespace_regex()]
    if part["handle_chinese_chars"]:
        steps.append(regex(f"([{_HAN}])", " $1 "))
    strips = part["strip_accents"]
    if part["lowercase"] if strips is None else strips:
        steps += [library.NormalizeUnicode("NFD"), regex.strip_accents_regex()]
    if part["lowercase"]:
        steps.append(library.CaseFoldStep())
    return steps


def _split_steps(content: Part) -> tuple[Steps, Steps]:
    """What a Metaspace has to do to the whole text before anything else, and all the splits."""
    first: Steps = []
    steps: Steps = []
    for place, part in enumerate(parts_of(content["pre_tokenizer"], "pretokenizers")):
        kind = part["type"]
        if kind == "Metaspace":
            if place:
                raise NotExpressibleError("a Metaspace after other splits")
            first, steps = _metaspace(part, content["added_tokens"])
        elif kind == "ByteLevel":
            if part["add_prefix_space"] and place:
                raise NotExpressibleError("a space that is put before each piece of the text")
            steps += _byte_level(part)
        elif kind in _SPLITS:
            steps += _SPLITS[kind](part)
        else:
            raise NotExpressibleError(f"pre-tokenizer {kind}")
    return first, steps


def _metaspace(part: Part, added: list[Part]) -> tuple[Steps, Steps]:
    from openvino_tokenizers.tokenizer_pipeline import RegexNormalizationStep

    mark = part["replacement"]
    steps: Steps = [RegexNormalizationStep(" ", mark)]
    if part["prepend_scheme"] == "always":
        steps.append(RegexNormalizationStep(rf"(^)([^{mark}])", f"{mark}$2"))
    if part["split"]:
        steps.append(_split(mark, "mergedwithnext"))
    if part["prepend_scheme"] != "first":
        return [], steps
    # Before the added tokens are cut out: it must pass over a text that begins with one.
    others = "|".join([" ", mark, *(re.escape(token["content"]) for token in added)])
    begin = RegexNormalizationStep(rf"^(?!{others})(?=[\s\S])", mark, global_replace=False)
    return [begin], steps


def _byte_level(part: Part) -> Steps:
    from openvino_tokenizers import tokenizer_pipeline as library

    regex = library.RegexNormalizationStep
    steps: Steps = []
    if part["add_prefix_space"]:
        steps.append(regex.add_prefix_whitespace_to_not_whitespace_regex())
    if part["use_regex"]:
        steps.append(_split(_GPT2_SPLIT))
    return [*steps, library.BytesToCharsStep()]


def _split(pattern: str, behaviour: str = "isolate", *, invert: bool = False) -> BasePipelineStep:
    """Not mergeable: one pattern after the other is not the same as either of them."""
    from openvino_tokenizers.tokenizer_pipeline import RegexSplitStep

    return RegexSplitStep(pattern, invert=invert, behaviour=behaviour, mergeable=False)


def _any_split(part: Part) -> Steps:
    pattern = _pattern(part["pattern"])
    if not pattern:
        raise NotExpressibleError("a split at every character")
    return [_split(pattern, _BEHAVIORS[part["behavior"]], invert=part["invert"])]


def _punctuation(part: Part) -> Steps:
    if part["behavior"] == "Contiguous":
        return [_split(f"{_PUNCTUATION}+")]
    return [_split(_PUNCTUATION, _BEHAVIORS[part["behavior"]])]


_SPLITS: dict[str, Callable[[Part], Steps]] = {
    "Split": _any_split,
    "Punctuation": _punctuation,
    "Digits": lambda part: [_split(r"\p{N}" if part["individual_digits"] else r"\p{N}+")],
    "Whitespace": lambda part: [_split(r"\w+|[^\w\s]+", "remove", invert=True)],
    "WhitespaceSplit": lambda part: [_split(r"\s+", "remove")],
    "BertPreTokenizer": lambda part: [_split(r"\s+", "remove"), _split(_PUNCTUATION)],
}


def _model_step(content: Part) -> BasePipelineStep:
    from openvino_tokenizers import tokenizer_pipeline as library

    model = content["model"]
    kind = model["type"]
    if kind == "BPE":
        for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model[name]:
                raise NotExpressibleError(f"BPE with {name.replace('_', ' ')}")
        return library.BPETokenizationStep.from_hf_json(content)
    if kind == "Unigram":
        raise NotExpressibleError("the Unigram model's choice between cuts that score the same")
    if kind == "WordPiece":
        names = library.WordPieceTokenizationStep.get_vocab_as_list(token_ids(content))
        return library.WordPieceTokenizationStep(
            names,
            model["unk_token"],
            model["continuing_subword_prefix"],
            model["max_input_chars_per_word"],
        )
    raise NotExpressibleError(f"tokenizer model {kind}")


def _pattern(pattern: dict[str, str]) -> str:
    """A pattern, or a string to be found as it is, as a regular expression."""
    if "Regex" in pattern:
        return pattern["Regex"]
    return re.sub(r"([^\w\s]|_)", r"\\\1", pattern["String"], flags=re.ASCII)


def _replacement(text: str) -> str:
    if "$" in text or "\\" in text:
        raise NotExpressibleError(f"the replacement {text!r:.40}")
    return text
