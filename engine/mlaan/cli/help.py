"""The list of all settings, for `mlaan train --help`."""

import shutil
import textwrap
from itertools import groupby

import mlaan.cli.settings  # noqa: F401  (data sets and methods register themselves)
from mlaan.config import Config, Setting, describe
from mlaan.config.toml import value_text
from mlaan.config.tree import about, fields_of

_LEFT = 34
_IN = " " * 4


def settings() -> str:
    """Every setting, by section, as it is typed with its default, beside its help."""
    width = min(shutil.get_terminal_size().columns, 120)
    lines = ["settings, each with its default"]
    for section, group in groupby(describe(Config), lambda setting: setting.key.partition(".")[0]):
        kind = fields_of(Config)[section].kind
        lines += ["", f"[{section}]  {about(kind)}"]
        member = ""
        for setting in group:
            if setting.member != member:
                member = setting.member
                lines.append(f"\n  with --{section}.name {member}")
                lines += textwrap.wrap(about(kind.choices[member]), width, initial_indent=_IN, subsequent_indent=_IN)
            lines += _entry(setting, width)
    return "\n".join(lines)


def _entry(setting: Setting, width: int) -> list[str]:
    left = f"  --{setting.key} {_shown(setting.default)}"
    known = ", ".join(map(str, setting.choices))
    if setting.key.endswith(".name") and setting.choices:
        text = f"one of {known}"
    else:
        unnamed = any(str(choice) not in setting.help for choice in setting.choices)
        text = f"{setting.help} ({known})" if unnamed else setting.help
    first, *more = textwrap.wrap(text, max(30, width - _LEFT - 2)) or [""]
    below = [" " * (_LEFT + 2) + line for line in more]
    if len(left) > _LEFT:
        return [left, " " * (_LEFT + 2) + first, *below]
    return [f"{left:<{_LEFT}}  {first}".rstrip(), *below]


def _shown(default: object) -> str:
    """A default as it is typed; VALUE where the setting must be given."""
    if default is None:
        return "VALUE"
    return (default or '""') if isinstance(default, str) else value_text(default)
