"""The script that every worker starts as: `PYTHON worker_main.py MODULE ...` runs a module of this
package in an interpreter that need not have ovgen installed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def mount_ovgen() -> None:
    """Make `ovgen` importable from here, and nothing else of what is installed beside it.

    PYTHONPATH would bring this environment's packages into the peer's interpreter.
    """
    # The script's own folder: its modules are no top-level ones.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]
    init = HERE.parent / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "ovgen", init, submodule_search_locations=[str(init.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["ovgen"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ovgen"])


def main(arguments: list[str]) -> None:
    """Run the module that the first argument names."""
    mount_ovgen()
    if arguments[0] == "probe":
        from ovgen.bench import probe

        probe.main(arguments[1:])
    else:
        from ovgen.bench import worker

        worker.run(arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
