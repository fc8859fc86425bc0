"""Check data against docs/report.schema.json: the few words of JSON Schema that it has."""

import json

from support.paths import ROOT

SCHEMA = json.loads((ROOT / "docs/report.schema.json").read_text(encoding="utf-8"))
TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int,
    "number": (int, float), "null": type(None),
}  # fmt: skip


def is_of(value, name):
    """Whether a value has a type of JSON; true and false are no numbers there."""
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def of_types(value, names, where):
    names = names if isinstance(names, list) else [names]
    if not any(is_of(value, name) for name in names):
        yield f"{where}: {value!r} is not of {names}"


def of_one(value, rules, where):
    tries = [misfits(value, rule, where) for rule in rules]
    # The nearest of them tells what is wrong.
    yield from min(tries, key=len)


def with_properties(value, rule, where):
    known, others = rule.get("properties", {}), rule.get("additionalProperties", True)
    yield from (f"{where}: lacks {key}" for key in rule.get("required", []) if key not in value)
    for key, inner in value.items():
        if key in known or isinstance(others, dict):
            yield from misfits(inner, known.get(key, others), f"{where}.{key}")
        elif not others:
            yield f"{where}: has {key}, which the schema lacks"


# {word: what is wrong with a value by it, told by the word's own value}
WORDS = {
    "$ref": lambda v, ref, w: misfits(v, SCHEMA["$defs"][ref.rpartition("/")[2]], w),
    "anyOf": of_one,
    "oneOf": of_one,
    "type": of_types,
    "const": lambda v, only, w: [] if v == only else [f"{w}: {v!r} is not {only!r}"],
    "enum": lambda v, some, w: [] if v in some else [f"{w}: {v!r} is none of {some}"],
    "minimum": lambda v, least, w: [] if v >= least else [f"{w}: {v!r} is too small"],
    "items": lambda v, rule, w: [told for one in v for told in misfits(one, rule, f"{w}[]")],
}
SILENT = {"description", "properties", "required", "additionalProperties"}


def misfits(value, rule=None, where="$"):
    """What in a value is not as a rule says, in lines; the whole schema counts without one."""
    rule = rule or {"oneOf": SCHEMA["oneOf"]}
    assert rule.keys() <= WORDS.keys() | SILENT, rule.keys()
    # Of a value of another type, nothing else is asked.
    if "type" in rule and (found := [*of_types(value, rule["type"], where)]):
        return found
    found = [
        told
        for word in rule.keys() & WORDS.keys()
        for told in WORDS[word](value, rule[word], where)
    ]
    return found + ([*with_properties(value, rule, where)] if isinstance(value, dict) else [])
