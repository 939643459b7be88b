"""Which methods of distillation there are, what each needs, costs and has reached: `python -m kdx.methods [NAME...]`.

What is told comes from the files in conf/kd and from the classes that they name; only what has been measured and what
has been published lies in files of its own.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.command import Command, Key, Text, run_command
from kdx.errors import KdxError, no_such
from kdx.files import relative
from kdx.report.tables import aligned
from kdx.run import CONF, PACKAGE

if TYPE_CHECKING:
    from kdx.chain.methods import Method

USAGE = """
python -m kdx.methods [NAME...] [config_dir=DIR]

Lists the methods of distillation: what each looks at and trains, for which tasks it is defined, what a training step of
it costs here, what has been published, its paper. With names, tells each in full with its options. `config_dir` adds
your own files, DIR/kd/*.yaml.
"""
KEYS: dict[str, Key] = {"config_dir": Text()}
MEASURED, PUBLISHED = "measured.json", "published.json"  # in kdx/losses; scripts/bench_methods.py makes the first


def tell_methods(words: list[str], config_dir: str | None) -> Iterator[str]:
    """The table of all methods, or the named ones in full."""
    from kdx.chain.methods import read_method

    paths = {path.stem: path for path in _options(CONF)}
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise KdxError(f"config_dir={config_dir}: no such folder")
        paths |= {path.stem: path for path in _options(Path(config_dir))}
    for word in words:
        if word not in paths:
            raise KdxError(f"{word}: {no_such('method', word, list(paths))}")
    methods = [read_method(paths[name]) for name in words or paths]
    taught = [method for method in methods if method.terms]
    if words:
        yield "\n\n".join(in_full(method) for method in methods)
    else:
        yield table(taught)


def table(methods: "Sequence[Method]") -> str:
    """A line a method, those that look at logits only first; below it, where the numbers come from."""
    measured, published = _figures(MEASURED), _figures(PUBLISHED)
    header = ["kd=", "looks at", "trains", "tasks", "step", "memory", *published["pairs"], "paper"]
    rows = []
    for method in sorted(methods, key=lambda method: (bool(method.layers), method.name)):
        reached = published["methods"].get(method.name, {})
        cells = [method.name, ", ".join(method.sees), method.trained, method.for_tasks]
        cells += [_ratio(measured, "step", method.name), _ratio(measured, "memory", method.name)]
        cells += [f"{reached[pair]:.2f}" if pair in reached else "-" for pair in published["pairs"]]
        rows.append([*cells, method.paper])
    for who in ("teacher", "student alone"):
        rows.append([who, *[""] * 5, *(f"{pair[who]:.2f}" for pair in published["pairs"].values()), ""])
    told = [
        "step, memory: processor time of a training step, and what it keeps for its backward pass, beside hinton's;"
    ]
    told += [f"    {measured['what']}; {measured['date']}, {measured['machine']}"]
    told += [f"resnet56-20 and so on: {published['what']}; other recipes, so compare within a column only"]
    told += [f"{name}: {found['note']}" for name, found in published["methods"].items() if "note" in found]
    told += ["python -m kdx.methods NAME tells one in full, with its options"]
    return "\n".join([aligned(header, rows), "", *told])


def in_full(method: "Method") -> str:
    """All that there is to say of one method."""
    measured, published = _figures(MEASURED), _figures(PUBLISHED)
    lines = [f"{method.name}: {method.what}", *(f"    {command}" for command in method.commands)]
    lines += [f"paper: {method.paper}"] if method.paper else []
    lines += [f"when: {method.when}"] if method.when else []
    for term in method.terms.values():
        lines += ["", f"{term.target}: {' '.join((type(term.method).__doc__ or '').split())}"]
    if method.terms:
        lines += ["", f"looks at: {', '.join(method.sees)}", f"trains: {method.trained}", f"tasks: {method.for_tasks}"]
        lines += [f"not for {task}: {reason}" for task, reason in method.refusals.items()]
    if method.name in measured["step"]:
        step, memory = (_ratio(measured, what, method.name) for what in ("step", "memory"))
        lines += [f"a step: {step} times hinton's time, {memory} times its memory ({measured['what']}; "]
        lines[-1] += f"{measured['date']}, {measured['machine']})"
    reached = published["methods"].get(method.name)
    if reached is not None:
        found = ", ".join(f"{pair} {reached[pair]:.2f}" for pair in published["pairs"] if pair in reached)
        sources = ", ".join(published["sources"][source] for source in reached["from"])
        note = f"; {reached['note']}" if "note" in reached else ""
        lines += [f"published: {found} ({published['what']}; {sources}{note})"]
    lines += ["", f"{relative(method.path, Path.cwd())}:", *(f"    {line}" for line in method.options)]
    return "\n".join(lines)


def _options(folder: Path) -> list[Path]:
    return sorted((folder / "kd").glob("*.yaml"))


def _figures(name: str) -> dict[str, Any]:
    return json.loads((PACKAGE / "losses" / name).read_text())


def _ratio(measured: dict[str, Any], what: str, name: str) -> str:
    return f"{measured[what][name]:.2f}" if name in measured[what] else "-"


COMMAND = Command(USAGE, tell_methods, KEYS, words=("[NAME...]",))


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(COMMAND, arguments)


if __name__ == "__main__":
    main()
