"""Do what `python orchestrate.py …` does, but keep the bytecode: compiling the file is a third of a short command."""

import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

__file__ = str(Path(__file__).resolve().parent.parent / "orchestrate.py")
sys.argv[0], sys.path[0] = __file__, str(Path(__file__).parent)
exec(SourceFileLoader("__main__", __file__).get_code("__main__"))  # type: ignore[arg-type]
