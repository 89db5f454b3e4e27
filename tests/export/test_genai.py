"""The exported folder in openvino-genai. Needs openvino-genai beside ovgen: marker `oracle`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovgen import LLM

PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "def fib(n):",
    "Wie heißt die Hauptstadt von Österreich?",
    "List three colours as JSON.",
]


@pytest.mark.oracle
def test_openvino_genai_gives_the_same_text(smollm2_folder: Path) -> None:
    genai = pytest.importorskip("openvino_genai")
    pipeline = genai.LLMPipeline(str(smollm2_folder), "CPU", **PROPERTIES)
    with LLM(smollm2_folder, precision="exact") as llm:
        for question in QUESTIONS:
            ours = llm.chat([{"role": "user", "content": question}], max_new_tokens=48)
            theirs = pipeline.generate(question, max_new_tokens=48, do_sample=False)
            assert str(theirs) == ours.text
