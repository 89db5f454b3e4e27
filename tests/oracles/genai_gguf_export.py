"""Let openvino-genai convert a GGUF and save the IR it would run.

python tests/oracles/genai_gguf_export.py smollm2.gguf DIRECTORY      (needs openvino-genai)
"""

import argparse
import shutil
from pathlib import Path

import openvino_genai


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    copy = arguments.directory / arguments.gguf.name  # the IR is written beside the GGUF
    shutil.copyfile(arguments.gguf, copy)
    pipeline = openvino_genai.LLMPipeline(str(copy), "CPU", enable_save_ov_model=True)
    print(pipeline.generate("The capital of France is", max_new_tokens=24, do_sample=False))
    copy.unlink()
    print(*sorted(path.name for path in arguments.directory.iterdir()))


if __name__ == "__main__":
    main()
