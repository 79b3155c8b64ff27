"""What stands at `module:object` or `file.py:object`. Needs no torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fmeta._errors import InputError


def find_object(call: str, where: str) -> tuple[str, Any]:
    """What stands at "module:object" or "path/file.py:object", and the place with the file's path made absolute.

    A file that runs as the script at this moment is not run a second time.

    Args:
        call: what error messages name.
        where: the place; `object` may have dots.

    Raises:
        InputError: no such module, file or object, or one that fails when it is imported.
    """
    source, colon, name = where.rpartition(":") if isinstance(where, str) else ("", "", "")
    if not (source and colon and name):
        raise InputError(f"{call}: {where!r} names no object; expected 'module:object' or 'path/file.py:object'")
    is_file = source.endswith(".py")
    try:
        found: Any = _file(Path(source)) if is_file else _module(source)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's own code may raise
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{call}: {where!r} cannot be imported: {reason}; expected 'module:object' or 'path/file.py:object' that "
            "can, from the folder where the run will be opened too"
        ) from error
    return f"{Path(source).resolve()}:{name}" if is_file else where, found


def _module(name: str) -> ModuleType:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)  # of `python -m name`
    return main if spec is not None and spec.name == name else importlib.import_module(name)


def _file(path: Path) -> ModuleType:
    path = path.resolve(strict=True)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and Path(file).name == path.name and Path(file).resolve() == path:
            return module
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
