"""Writes a small byte-level OpenVINO tokenizer pair into a folder: 256 bytes, three merges, <s> and
</s>, with truncation to four tokens and the clean-up of spaces switched on, as older files have.
"""

import sys
from pathlib import Path

import openvino as ov
from openvino_tokenizers import tokenizer_pipeline as steps
from openvino_tokenizers.constants import UTF8ReplaceMode

VOCAB = [*(bytes([byte]) for byte in range(256)), b"he", b"ll", b"hell", b"<s>", b"</s>"]
MERGES = [(b"h", b"e"), (b"l", b"l"), (b"he", b"ll")]
BOS, EOS = 259, 260


def main(folder: Path) -> None:
    pipeline = steps.TokenizerPipeline()
    pipeline.vocab = VOCAB
    pipeline.skip_tokens = [BOS, EOS]
    pipeline.add_steps(
        [
            steps.SpecialTokensSplit([steps.SpecialToken("<s>"), steps.SpecialToken("</s>")]),
            steps.RegexSplitStep(r"\s+|\S+", invert=True, behaviour="isolate"),
            steps.BPETokenizationStep(VOCAB, MERGES, added_tokens={b"<s>": BOS, b"</s>": EOS}),
            steps.TruncationStep(max_length=4, truncation=True),
            steps.CombineSegmentsStep([steps.AddToken(_token_id=BOS), steps.Sequence()]),
            steps.PaddingStep(_token_id=EOS),
            steps.VocabDecoderStep(),
            steps.FuseStep(),
            steps.UTF8ValidateStep(mode=UTF8ReplaceMode.REPLACE),
            steps.RegexDecodingStep.clean_up_tokenization_spaces(),
        ]
    )
    ov.save_model(pipeline.get_tokenizer_ov_subgraph(), folder / "openvino_tokenizer.xml")
    ov.save_model(pipeline.get_detokenizer_ov_subgraph(), folder / "openvino_detokenizer.xml")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
