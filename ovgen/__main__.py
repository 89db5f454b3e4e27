"""``python -m ovgen`` is the ``ovgen`` command."""

from ovgen.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
