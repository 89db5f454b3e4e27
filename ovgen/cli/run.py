"""``ovgen run``: a prompt in, the model's answer out as it comes."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovgen.cli.arguments import Commands, add_command, add_weights, key_json, key_value
from ovgen.cli.generation_options import add_generation_options, make_generation_config
from ovgen.cli.terminal import Output, is_terminal, progress_line
from ovgen.engine_config import PRECISIONS, PROFILES
from ovgen.errors import RequestError, TemplateError
from ovgen.generation_config import GenerationConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovgen.llm import LLM
    from ovgen.outputs import RequestOutput, StreamChunk

# The LLM sets these itself.
_OWN_TEMPLATE_ARGS = ("messages", "tools", "add_generation_prompt")


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = add_command(
        commands,
        "run",
        execute,
        help="answer a prompt",
        example='ovgen run smollm2-135m-instruct "Why is the sky blue?" --max-new-tokens 200',
    )
    parser.add_argument("model", metavar="MODEL", help="alias, IR folder, .gguf file or org/name")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", default="-", help="absent or -: read from stdin"
    )
    _add_prompt_options(parser.add_argument_group("prompt"))
    add_generation_options(parser.add_argument_group("generation"))
    _add_model_options(parser.add_argument_group("model"))
    output = parser.add_argument_group("output")
    output.add_argument("--stats", action="store_true", help="times and counts to stderr")
    output.add_argument(
        "--json", action="store_true", help="one JSON object at the end in place of the text"
    )


def _add_prompt_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--raw", action="store_true", help="complete the prompt as it is, no chat")
    group.add_argument("--system", metavar="TEXT", help="system message of the chat")
    group.add_argument(
        "--template-arg",
        metavar="KEY=JSON",
        action="append",
        type=_template_arg,
        default=[],
        help="variable for the chat template, as enable_thinking=false; repeatable",
    )


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="CPU", help="OpenVINO device (default: %(default)s)")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="default",
        help="exact: float32 throughout (default: %(default)s)",
    )
    add_weights(group)
    group.add_argument(
        "--profile",
        choices=PROFILES,
        default="auto",
        help="what `ovgen tune` has measured to use (default: %(default)s, the last)",
    )
    group.add_argument(
        "--property",
        metavar="KEY=VALUE",
        action="append",
        type=key_value,
        default=[],
        help="OpenVINO compile property; repeatable",
    )
    group.add_argument("--offline", action="store_true", help="never reach for the network")


def _template_arg(text: str) -> tuple[str, Any]:
    key, value = key_json(text)
    if key in _OWN_TEMPLATE_ARGS:
        raise argparse.ArgumentTypeError(f"{key} is set by ovgen itself")
    return key, value


def execute(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.raw and (arguments.system is not None or arguments.template_arg):
        option = "--template-arg" if arguments.system is None else "--system"
        arguments.parser.error(f"{option} has no effect with --raw: leave one of the two out")
    config = make_generation_config(arguments)
    prompt = _read_prompt(arguments)
    llm = _load(arguments, config)
    output = Output()
    try:
        request = _answer(llm, _stream(llm, prompt, config, arguments), output, arguments)
    except BaseException:
        output.end_line()
        raise
    if arguments.stats:
        _print_stats(request)


def _read_prompt(arguments: argparse.Namespace) -> str:
    prompt: str = arguments.prompt
    if prompt == "-":
        if sys.stdin is None or is_terminal(sys.stdin):
            arguments.parser.error("no prompt: give PROMPT, or pipe it into stdin")
        prompt = _read_stdin()
    if not prompt:
        raise RequestError("the prompt is empty; give some text")
    return prompt


def _read_stdin() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise RequestError(
            f"the prompt on stdin is not UTF-8 (byte {exc.start}); convert it, as with iconv"
        ) from exc
    # The newline that ends a text file or an echo is not part of the question.
    return text.removesuffix("\n").removesuffix("\r")


def _load(arguments: argparse.Namespace, config: GenerationConfig) -> LLM:
    from ovgen.llm import LLM
    from ovgen.model.resolve import resolve_folder

    with progress_line(f"exporting {arguments.model}") as show:
        folder = resolve_folder(
            arguments.model,
            weights=arguments.weights,
            offline=arguments.offline or None,
            progress=show,
        )
    # Before the model is compiled: it takes long.
    config.resolve(GenerationConfig.from_pretrained(folder))
    if not arguments.raw:
        _require_template(folder)
    return LLM(
        folder,
        arguments.device,
        arguments.precision,
        properties=dict(arguments.property),
        profile=arguments.profile,
    )


def _require_template(folder: Path) -> None:
    from ovgen.text.chat_template import load_chat_template

    if load_chat_template(folder) is None:
        raise TemplateError(
            f"{folder} has no chat template; use --raw to have the prompt completed as it is"
        )


def _stream(
    llm: LLM, prompt: str, config: GenerationConfig, arguments: argparse.Namespace
) -> Iterator[StreamChunk]:
    if arguments.raw:
        return llm.stream(prompt, config)
    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return llm.stream_chat(messages, config, template_args=dict(arguments.template_arg))


def _answer(
    llm: LLM,
    stream: Iterator[StreamChunk],
    output: Output,
    arguments: argparse.Namespace,
) -> RequestOutput:
    request = None
    for chunk in stream:
        if not arguments.json:
            output.write(chunk.text)
        request = chunk.output
    assert request is not None, "the last chunk holds the output"
    if arguments.json:
        output.write(json.dumps(to_json(request), ensure_ascii=False) + "\n")
    elif not request.text.endswith("\n"):
        output.write("\n")
    return request


def to_json(request: RequestOutput) -> dict[str, Any]:
    """What ``--json`` writes: the first output as it is, and then all of them with their scores."""
    first, metrics = request.outputs[0], request.metrics
    written: dict[str, Any] = {
        "text": first.text,
        "token_ids": first.token_ids,
        "prompt_token_ids": request.prompt_token_ids,
        "finish_reason": first.finish_reason,
        "stop_reason": first.stop_reason,
        "outputs": [
            {**asdict(one), "cumulative_logprob": one.cumulative_logprob} for one in request.outputs
        ],
        "seed": request.seed,
        "metrics": {
            **asdict(metrics),
            "tpot": metrics.tpot,
            "prefill_tokens_per_s": metrics.prefill_tokens_per_s,
            "decode_tokens_per_s": metrics.decode_tokens_per_s,
        },
    }
    if request.prompt_logprobs is not None:
        written["prompt_logprobs"] = [
            None if one is None else asdict(one) for one in request.prompt_logprobs
        ]
    return {name: _finite(value) for name, value in written.items()}


def _finite(value: Any) -> Any:
    """The same with None for infinite numbers, as log-probabilities may be: JSON has none."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_stats(request: RequestOutput) -> None:
    metrics = request.metrics
    ends = (
        one.finish_reason + ("" if one.stop_reason is None else f" ({one.stop_reason!r})")
        for one in request.outputs
    )
    lines = (
        f"load          {metrics.load_time:8.3f} s",
        f"tokenization  {metrics.tokenization_time * 1e3:8.1f} ms",
        f"TTFT          {metrics.ttft * 1e3:8.1f} ms",
        f"TPOT          {metrics.tpot * 1e3:8.1f} ms",
        f"prefill       {metrics.num_prompt_tokens:8} tokens"
        f" {metrics.prefill_tokens_per_s:8.1f} tokens/s",
        f"decode        {metrics.num_output_tokens:8} tokens"
        f" {metrics.decode_tokens_per_s:8.1f} tokens/s",
        f"finish        {', '.join(ends)}",
    )
    print("\n".join(lines), file=sys.stderr)
