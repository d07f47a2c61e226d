"""Write the reference of every JSON document, from the models that read and write them.

    python benchmarks/json_reference.py --out docs/json-reference.md

Types, defaults and limits are those of the models' JSON schemas; the meanings stand in their
docstrings. A test compares the page with what this script writes.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pages import parser, publish
from pydantic import TypeAdapter

from upscale_opt.cli.fronts import Fronts
from upscale_opt.experiments.bench.records import BenchRecord
from upscale_opt.experiments.coverage.records import NetworkRecord
from upscale_opt.ir.base import SCHEMA_VERSION, Record
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.cost_model import KINDS, CostModel
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.losses import Losses
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.saving.file import Manifest
from upscale_opt.solver.checking.removal import Removal
from upscale_opt.solver.choosing import ChoiceComparison
from upscale_opt.solver.comparing import Comparison
from upscale_opt.solver.problem.instance_file import InstanceFile

Model = type[Any]
"""A record of Pydantic's, or a dataclass in one."""


@dataclass(frozen=True)
class Entry:
    """A document, and where users meet it."""

    model: Model
    where: str


GROUPS = {
    "From a model to a solution": (
        Entry(ChannelGraph, "`graph.json`: `uo.trace`, `upscale-opt trace`, `upscale-opt run`"),
        Entry(Masks, "`masks.json`: `uo.Masks`, `upscale-opt trace --masks`, `upscale-opt run`"),
        Entry(
            CostModel, "`uo.measuring.calibrate`, `upscale-opt calibrate`; read by `--cost-model`"
        ),
        Entry(Solution, "`solution.json`: `uo.solve`, `upscale-opt solve`, `upscale-opt run`"),
        Entry(
            InstanceFile,
            "`upscale_opt.solver.problem.instance_file`; read by `upscale-opt compare --instance`",
        ),
    ),
    "Within a budget": (
        Entry(Losses, "`losses.json`: `result.losses` of `uo.prune`, `upscale-opt prune`"),
        Entry(Choice, "`choice.json`: `uo.solver.choose`, `upscale-opt prune`"),
    ),
    "Reports": (
        Entry(Comparison, "`uo.solver.compare`, `upscale-opt compare`"),
        Entry(ChoiceComparison, "`uo.solver.compare_choices`"),
        Entry(Removal, "`uo.solver.removal`, `upscale-opt removed --json`"),
        Entry(Fronts, "`upscale-opt pareto`"),
    ),
    "Measurements": (
        Entry(BenchRecord, "`upscale-opt bench`, one per network"),
        Entry(NetworkRecord, "`upscale-opt coverage`, one per network"),
    ),
    "Inside of pruned.safetensors": (
        Entry(Manifest, "the metadata `manifest`; see [Pruned models in files](saving.md)"),
    ),
}

INTRO = f"""\
# JSON reference

Every document that upscale-opt reads or writes, field by field. [json.md](json.md) explains those
that matter most, with an example; begin there.

* In Python each is a frozen Pydantic model with `save`, `load`, `to_json` and `from_json`; what
  `load` and `from_json` read is checked, and refused with a `SchemaError` that names the first
  field at fault. `model_json_schema()` says the same as this page to machines.
* `schema_version` is {SCHEMA_VERSION}, written always and first. A document of another version is
  refused. Where it is missing, it is taken to be {SCHEMA_VERSION}.
* Unknown fields are refused. Fields at their default are not written.
* *channels* is a [list of channels](json.md#lists-of-channels): a string of runs, such as
  `"0-3,7"`. When read, a list of numbers does, too. No list holds more than 4,000,000.
* A *map* is an object with one entry per name or number; JSON writes numbers as strings there.

Written by `python benchmarks/json_reference.py --out docs/json-reference.md`, from the models.
"""


def main() -> int:
    options = parser(__doc__).parse_args()
    publish(page(), options.out)
    return 0


def page() -> Iterator[str]:
    """The lines of the page."""
    yield from INTRO.splitlines()
    reference = Reference()
    for title, entries in GROUPS.items():
        yield ""
        names = [f"[{entry.model.__name__}](#{entry.model.__name__.lower()})" for entry in entries]
        yield f"**{title}:** {', '.join(names)}"
    for entries in GROUPS.values():
        for entry in entries:
            yield from reference.document(entry)


class Reference:
    """Every model reachable from a document is described once, below the first that has it."""

    def __init__(self) -> None:
        self.titles: dict[str, str] = {}
        self.parts: dict[str, list[Model]] = {}
        seen: dict[Model, None] = dict.fromkeys(entry.model for entry in documents())
        for entry in documents():
            new = [model for model in reachable(entry.model) if model not in seen]
            own = [entry.model, *new]
            seen.update(dict.fromkeys(own))
            self.parts[entry.model.__name__] = own
        numbers = {model: number for number, model in enumerate(seen)}
        keys, schema = TypeAdapter.json_schemas(
            [(number, "validation", TypeAdapter(model)) for model, number in numbers.items()]
        )
        self.schemas: dict[str, Any] = schema["$defs"]
        self.key = {model: keys[number, "validation"]["$ref"] for model, number in numbers.items()}
        for document, models in self.parts.items():
            for model in models:
                name = model.__name__
                self.titles[self.key[model]] = name if name == document else f"{document}: {name}"

    def document(self, entry: Entry) -> Iterator[str]:
        for model in self.parts[entry.model.__name__]:
            top = model is entry.model
            yield ""
            yield f"{'##' if top else '###'} {self.titles[self.key[model]]}"
            yield ""
            yield summary(model)
            if top:
                yield f"\n*Where:* {entry.where}."
            if model is CostModel:
                yield f"\n*Kinds of kernels:* {', '.join(f'`{kind}`' for kind in KINDS)}."
            yield ""
            yield from self.table(model)

    def table(self, model: Model) -> Iterator[str]:
        schema = self.schemas[self.key[model].rpartition("/")[2]]
        told = meanings(model)
        yield "| field | type | default | meaning |"
        yield "| --- | --- | --- | --- |"
        for name, field in schema["properties"].items():
            own = in_python(model, name)
            meaning = told.get(own, "")
            if name in schema.get("required", ()):
                default = "*required*"
            elif "const" in field:
                default, meaning = "*required*", "says which operation it is."
            else:
                default = f"`{json.dumps(default_of(model, own, field))}`"
            cells = (f"`{name}`", self.type_of(field), default, meaning)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    def type_of(self, schema: Mapping[str, Any]) -> str:
        """A type in words, with links to the models that it is made of."""
        if "$ref" in schema:
            title = self.titles[schema["$ref"]]
            return f"[{title.rpartition(': ')[2]}](#{anchor(title)})"
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return " or ".join(dict.fromkeys(map(self.type_of, schema[several])))
        if "const" in schema:
            return f'`"{schema["const"]}"`'
        if "enum" in schema:
            return ", ".join(f'`"{value}"`' for value in schema["enum"])
        kind = schema.get("type")
        if kind == "array":
            if "prefixItems" in schema:
                return f"[{', '.join(map(self.type_of, schema['prefixItems']))}]"
            return f"list of {self.type_of(schema['items'])}"
        if kind == "object":
            return f"map of {self.type_of(schema['additionalProperties'])}"
        if schema.get("description") == "channel numbers, as runs":
            return "channels"
        return f"{kind}{limits(schema)}"


def documents() -> Iterator[Entry]:
    for entries in GROUPS.values():
        yield from entries


def reachable(model: Model) -> list[Model]:
    """The model, and those that its fields are made of, as they come."""
    found: dict[Model, None] = {}

    def visit(kind: Any) -> None:
        if is_model(kind) and kind not in found:
            found[kind] = None
            for annotation in field_types(kind).values():
                visit(annotation)
        for part in get_args(kind):
            visit(part)

    visit(model)
    return list(found)


def is_model(kind: Any) -> bool:
    return inspect.isclass(kind) and (issubclass(kind, Record) or is_dataclass(kind))


def field_types(model: Model) -> dict[str, Any]:
    """The types of a model's fields, by their names."""
    if is_dataclass(model):
        hints = get_type_hints(model)
        return {field.name: hints[field.name] for field in fields(model)}
    return {name: field.annotation for name, field in model.model_fields.items()}


def in_python(model: Model, name: str) -> str:
    """The name of the field that JSON calls ``name``."""
    if is_dataclass(model):
        return name
    named = (own for own, field in model.model_fields.items() if field.validation_alias == name)
    return next(named, name)


def lacking() -> list[str]:
    """The fields whose models' docstrings do not say what they mean."""
    models = dict.fromkeys(model for entry in documents() for model in reachable(entry.model))
    return [
        f"{model.__module__}.{model.__name__}.{name}"
        for model in models
        for name, annotation in field_types(model).items()
        if not meanings(model).get(name) and not is_tag(model, name, annotation)
    ]


def is_tag(model: Model, name: str, annotation: Any) -> bool:
    """The field has one value only, and so speaks for itself."""
    return not is_dataclass(model) and (model.model_fields[name].default,) == get_args(annotation)


def meanings(model: Model) -> dict[str, str]:
    """What the docstrings of a model and its bases say of each field."""
    told: dict[str, str] = {}
    for base in reversed(model.__mro__):
        section = re.search(r"^Attributes:\n((?: .*\n?|\n)+)", docstring(base), re.MULTILINE)
        for entry in re.split(r"\n(?=    \w)", section[1].rstrip() if section else ""):
            names, _, text = entry.strip().partition(": ")
            for name in names.split(", "):
                told[name] = plain(text)
    return {name: text for name, text in told.items() if name in field_types(model)}


def summary(model: Model) -> str:
    """A model's docstring without its sections."""
    text = re.split(r"^(?:Attributes|Args):$", docstring(model), maxsplit=1, flags=re.MULTILINE)[0]
    return "\n\n".join(plain(paragraph) for paragraph in text.strip().split("\n\n"))


def docstring(kind: type) -> str:
    return inspect.cleandoc(kind.__dict__.get("__doc__") or "")


def plain(text: str) -> str:
    """A docstring's text on one line, as Markdown."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("`None`", "`null`")


def default_of(model: Model, name: str, schema: Mapping[str, Any]) -> Any:
    if "default" not in schema:
        return model.model_fields[name].get_default(call_default_factory=True)
    default = schema["default"]
    return "" if default == [] and schema.get("type") == "string" else default


def limits(schema: Mapping[str, Any]) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    signs = (("≥", least), (">", above), ("≤", most), ("<", below))
    return ",".join(f" {sign} {value:,}" for sign, value in signs if value is not None)


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    raise SystemExit(main())
