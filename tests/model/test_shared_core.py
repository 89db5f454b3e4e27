"""What OpenVINO's plugins share with the process that loads them."""

import subprocess
import sys
from pathlib import Path

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"

PROGRAM = f"""
import signal
from ovgen import LLM

first, second = LLM({str(LLAMA)!r}), LLM({str(LLAMA)!r})
first.close()
second.close()
del first, second
signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_signals_after_models_were_closed_in_their_order():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
