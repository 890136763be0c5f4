"""Write docs/configuration.md: every key of a configuration, from galmerhpc/config.py.

python docs/configuration.py
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from galmerhpc.config import Config, Section

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
# Configuration

Every key of a configuration file with its default, generated from `galmerhpc/config.py` by
`docs/configuration.py`. A file needs to give only what differs from the defaults, and
`SECTION.KEY=VALUE` on the command line overrides single keys. Unknown keys, values out of range and
impossible combinations are refused by name. A dash means that there is no default, *null* is YAML's
null. `[]` in a section's name denotes a list of such sections, `<name>` a name of your choice.
"""


class Part(NamedTuple):
    """A section at its place in the file."""

    path: str
    kind: type[Section]
    said: str
    """Docstring of the key that holds it."""
    defaults: Section | None
    """Its value by default; None if it has none or must be given."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """Return the page: one table per section, in the order of the file."""
    return "\n".join([HEAD, *map(describe, parts(Part("", Config, "", None)))])


def parts(part: Part) -> Iterator[Part]:
    """Yield a section and all sections within it."""
    yield part
    for name, field in part.kind.model_fields.items():
        if kind := section_of(field.annotation):
            default, said = value_of(part, name), text_of(field)
            if default is None:
                said = f"{said} Default: *null*.".lstrip()
            path = ".".join([part.path, name]).lstrip(".")
            named = default if isinstance(default, dict) else {}
            places = {f"{path}.{key}": one for key, one in named.items()}
            for place, one in (places or {path + place_of(field.annotation): default}).items():
                known = one if isinstance(one, kind) else None
                yield from parts(Part(place, kind, said, known))


def describe(part: Part) -> str:
    """Return a section's heading, description, and one row per key."""
    rows = [
        f"| `{name}` | {default_of(part, name)} | {meaning(field)} |"
        for name, field in part.kind.model_fields.items()
        if not section_of(field.annotation)
    ]
    title = f"## `{part.path}`" if part.path else "## Top level"
    lines = [title, "", f"{about(part.kind)} {part.said}".strip(), ""]
    if rows:
        lines += ["| key | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that an annotation holds, one or many; None for plain values."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return annotation
    found = (section_of(inner) for inner in get_args(annotation))
    return next((kind for kind in found if kind), None)


def place_of(annotation: Any) -> str:
    """Return the suffix of a section's path: in a list, under a name, or none."""
    return {tuple: "[]", dict: ".<name>"}.get(get_origin(annotation), "")


def value_of(part: Part, name: str) -> Any:
    """Return the default of a key; Ellipsis if it must be given."""
    if part.defaults is not None:
        return getattr(part.defaults, name)
    field = part.kind.model_fields[name]
    return ... if field.is_required() else field.default


def default_of(part: Part, name: str) -> str:
    """Return a default in YAML."""
    value = value_of(part, name)
    return {"...": "-", "null": "*null*"}.get(yaml(value), f"`{yaml(value)}`")


def yaml(value: Any) -> str:
    """Return a value as one line of YAML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(yaml, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    if value is ... or value is None or isinstance(value, bool):
        return {...: "...", None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else "''"


def about(kind: type[Section]) -> str:
    """Return the first paragraph of a section's docstring."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def text_of(field: FieldInfo) -> str:
    """Return a key's docstring as one line."""
    return " ".join((field.description or "").replace("``", "`").split())


def meaning(field: FieldInfo) -> str:
    """Return a key's docstring, preceded by its choices unless it names them all."""
    text = text_of(field).replace("|", "\\|")
    choices = choices_of(field.annotation)
    if choices and not all(str(choice) in text for choice in choices):
        *rest, last = map(str, choices)
        text = f"{', '.join(rest)} or {last}. {text}".rstrip()
    return text


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """Return the values that an annotation lists."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for inner in get_args(annotation) for choice in choices_of(inner))


if __name__ == "__main__":
    main()
