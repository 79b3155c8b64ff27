"""The fields of `fit`'s groups, given by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmeta.core import InputError
from fmeta.core._checks import nearest
from fmeta.training._logging import Logging
from fmeta.training._run_files import Saving
from fmeta.training._validation import Validate, Validation

_FIELDS = {  # keyword of `fit` -> the group and its field
    "log_every": ("logging", "every"),
    "loggers": ("logging", "loggers"),
    "save_every": ("saving", "every"),
    "recipe": ("saving", "recipe"),
    "validate_every": ("validate", "every"),
    "monitor": ("validate", "monitor"),
    "mode": ("validate", "mode"),
    "patience": ("validate", "patience"),
}


def grouped(
    brief: Mapping[str, Any],
    validate: Validation | Validate | None,
    saving: Saving,
    logging: Logging,
    known: Sequence[str],
) -> tuple[Validation | None, Saving, Logging]:
    """The three groups with what was given in brief; `known` are the other arguments of `fit`.

    Raises InputError for a keyword that no group has, and for one of validation where nothing validates.
    """
    judged = Validation(validate) if validate is not None and not isinstance(validate, Validation) else validate
    groups: dict[str, Any] = {"validate": judged, "saving": saving, "logging": logging}
    for name, value in brief.items():
        if name not in _FIELDS:
            if name == "skip_nonfinite":
                raise InputError(f"fit({name}={value!r}): no such argument; expected gradient=fmeta.skipping()")
            raise InputError(f"fit({name}={value!r}): no such argument; {nearest(name, [*known, *_FIELDS])}")
        group, field = _FIELDS[name]
        if groups[group] is None:
            raise InputError(f"fit({name}={value!r}): nothing validates; expected validate=, what judges the meta")
        if getattr(groups[group], field) != type(groups[group])._field_defaults[field]:
            raise InputError(f"fit({name}={value!r}): {group}= says it too; expected it once")
        groups[group] = groups[group]._replace(**{field: value})
    return groups["validate"], groups["saving"], groups["logging"]
