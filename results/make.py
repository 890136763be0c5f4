"""Make the lines of docs/results.md one by one, and write what they say.

    make results                 what must exist and does not, or was made otherwise than now
    make results LINES="3 8"     these
    make results LINES=--page    only write docs/results.md again, from results/*.json

Every command is resumable, so that this is, too. A line's figures go into ``results/line-NN.json``,
with its thresholds, and ``docs/results.md`` is written from those files; nobody edits it.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from galmerhpc import files
from galmerhpc.config import digest, load
from galmerhpc.errors import ExitCode, GalmerhpcError, InputError
from results.lines import LINES, Found, Line

ROOT = Path(__file__).parents[1]

HEAD = """# Results

Written by `make results` from `results/*.json`; not edited by hand. Images are our collisionless
N-body encounters, drawn by the mirror, and not GalMer's. Errors are in degrees, spin counts as 0 or
1, and averages are plain means over parameters. The look-up learns nothing: it takes the most
similar thumbnails among the training images. `make results` makes lines 1 to 7, `make results
LINES="8 9 10 11"` the others; the targets are the project's own. Line 6 needs photographs that are
not shipped.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make lines and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lines", nargs="*", type=int, metavar="LINE", help="number of a line")
    parser.add_argument("--page", action="store_true", help="only write docs/results.md again")
    given = parser.parse_args(arguments)
    if unknown := set(given.lines) - {line.number for line in LINES}:
        parser.error(f"there is no line {min(unknown)}")
    codes = []
    for line in [] if given.page else LINES:
        if line.number in given.lines if given.lines else line.must and not is_made(line, ROOT):
            codes.append(make(line, ROOT))
            write_page(LINES, ROOT)
            if codes[-1] == ExitCode.INTERRUPTED:
                break
    write_page(LINES, ROOT)
    return next(filter(None, codes), 0)


def is_made(line: Line, root: Path) -> bool:
    """Say whether a line has been made, by the present commands and configurations."""
    path = json_path(line, root)
    return path.exists() and not has_changed(line, files.read_json(path), root)


def has_changed(line: Line, result: dict[str, Any], root: Path) -> bool:
    """Say whether a line is made otherwise than its JSON says it was."""
    made = result["commands"], result["configurations"]
    return made != (list(line.commands), configurations(line, root))


def make(line: Line, root: Path) -> int:
    """Run a line's commands in a folder and write its JSON there; return an exit code."""
    if missing := [name for name in line.needs if not (root / name).exists()]:
        print(
            f"line {line.number}: {root / missing[0]}: no such file; put it there", file=sys.stderr
        )
        return ExitCode.WRONG_INPUT
    for command in line.commands:
        print(f"== line {line.number}: {command}", flush=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            shlex.split(command), cwd=root, env={**os.environ, "PATH": path}, check=False
        )
        if done.returncode:
            print(f"line {line.number}: exit code {done.returncode} of: {command}", file=sys.stderr)
            return done.returncode
    try:
        write_json(line, line.read(root / "runs"), root)
    except GalmerhpcError as error:
        print(f"line {line.number}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


# --- a line's JSON --------------------------------------------------------------------------------


def json_path(line: Line, root: Path) -> Path:
    """Return the file of a line."""
    return root / "results" / f"line-{line.number:02d}.json"


def write_json(line: Line, found: Found, root: Path) -> None:
    """Write what a line says, and copy its figures beside it."""
    figures = {}
    for k, (caption, path) in enumerate(found.figures.items(), 1):
        for suffix in (".png", ".pdf"):
            copy = root / "results" / f"line-{line.number:02d}-{k}{suffix}"
            shutil.copyfile(path.with_suffix(suffix), copy)
        figures[caption] = f"line-{line.number:02d}-{k}"
    repeats = [run["repeat"] for run in found.runs]
    files.write_json(
        json_path(line, root),
        {
            "line": line.number,
            "title": line.title,
            "commands": line.commands,
            "configurations": configurations(line, root),
            "runs": [
                {"name": run["run"]["name"], "configuration": run["repeat"]["configuration"]}
                for run in found.runs
            ],
            "machine": repeats[-1]["machine"],
            "versions": repeats[-1]["versions"],
            "date": max(repeat["date"] for repeat in repeats),
            "training_s": sum(run["training"]["seconds"] for run in found.runs),
            "tables": found.tables,
            "bars": [{**vars(bar), "met": bar.met} for bar in found.bars],
            "remarks": found.remarks,
            "figures": figures,
        },
    )


def configurations(line: Line, root: Path) -> dict[str, str]:
    """Return the hash of each configuration that a line's commands use.

    Of all that decides a figure: what a run makes, and the encounters and points of a study.
    """
    found = {}
    for command in line.commands:
        words = shlex.split(command)
        keys = [word for word in words if "=" in word and not word.startswith("-")]
        for word in words:
            if word.endswith(".yaml") and word not in keys:
                config = load(root / word, keys)
                found[" ".join([word, *keys])] = digest(
                    [
                        config.inputs("evaluate"),
                        config.simulate.model_dump(mode="json"),
                        config.studies.model_dump(mode="json"),
                    ]
                )
    return found


# --- the page -------------------------------------------------------------------------------------


def write_page(lines: Sequence[Line], root: Path) -> None:
    """Write docs/results.md from the lines' JSON."""
    parts = [HEAD, *(section(line, root) for line in lines)]
    files.write_text(root / "docs" / "results.md", "\n".join(parts))


def section(line: Line, root: Path) -> str:
    """Return a line's part of the page."""
    path = json_path(line, root)
    text = [f"## {line.number}. {line.title}", ""]
    command = ["```sh", *line.commands, "```", ""]
    if not path.exists():
        needs = f" (they need {' and '.join(line.needs)}, not shipped)" if line.needs else ""
        return "\n".join([*text, f"Not run. Its commands{needs}:", "", *command])
    result = files.read_json(path)
    for caption, rows in result["tables"].items():
        text += [f"{caption[0].upper()}{caption[1:]}:", "", *markdown(rows), ""]
    if result["bars"]:
        text += [*markdown([bar_row(bar) for bar in result["bars"]]), ""]
    text += [line for remark in result["remarks"] for line in (remark, "")]
    text += [
        line
        for caption, name in result["figures"].items()
        for line in (f"![{caption}](../results/{name}.png)", "", f"*{caption}*", "")
    ]
    return "\n".join([*text, *command, facts(line, result, root), ""])


def facts(line: Line, result: dict[str, Any], root: Path) -> str:
    """Return what stands under a line: hashes, machine, duration."""
    machine = result["machine"]
    hashes = "; ".join(f"`{name}` {value[:12]}" for name, value in result["configurations"].items())
    text = (
        f"Configurations: {hashes}. Machine: {machine['cpu']}, {machine['cpus']} CPUs. "
        f"Training {duration(result['training_s'])} in all; {result['date'][:10]}."
    )
    try:
        changed = has_changed(line, result, root)
    except InputError as error:
        return f"{text} **{error}**"
    if changed:
        text += " **Its commands or configurations have changed since.**"
    return text


def bar_row(bar: dict[str, Any]) -> dict[str, Any]:
    """Return a threshold as a row of a table."""
    return {
        "target": bar["what"],
        "measured": bar["value"],
        "limit": f"{bar['sense']} {bar['limit']:g}",
        "": "met" if bar["met"] else "**missed**",
    }


def markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return rows as lines of a Markdown table; a cell that a row does not have is empty."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    lines = [heads, ["---"] * len(heads)]
    lines += [[cell(row.get(head)) for head in heads] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def cell(value: Any) -> str:
    """Write a value for a table."""
    if value is None:
        return ""
    if not isinstance(value, int | float):
        return str(value).strip().replace("|", "\\|")  # else it would end the cell
    if value == int(value) and abs(value) >= 1:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Write a duration."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    sys.exit(main())
