"""Small tokenizers, built once and saved as a model folder has them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_tokenizers import BUILDERS

from ovgen.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, build in BUILDERS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        build().save(str(folders[name] / "tokenizer.json"))
        config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}
        (folders[name] / "tokenizer_config.json").write_text(json.dumps(config))
    return folders


@pytest.fixture(scope="session")
def small_tokenizers(tokenizer_folders) -> dict[str, Tokenizer]:
    return {name: load_tokenizer(folder) for name, folder in tokenizer_folders.items()}


@pytest.fixture(scope="session")
def ov_tokenizer_folder(tmp_path_factory) -> Path:
    """Made in a process of its own: importing openvino_tokenizers changes OpenVINO."""
    folder = tmp_path_factory.mktemp("ov_tokenizer")
    script = Path(__file__).with_name("make_ov_tokenizer.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder
