"""Documentation that cannot rot: the README's commands and examples run, the field table is the schema's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuner.definition import Arm, Budget, Comparison, ComparisonDefinition, NamedObjective
from tuner.pruners import PRUNERS
from tuner.samplers import SAMPLERS
from tuner.space import PARAMETER_TYPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
@pytest.mark.long
def test_the_readmes_tour_runs(tmp_path: Path) -> None:
    tour = README.split("## A five-minute tour")[1].split("\n## ")[0]
    for file in blocks("toml", tour):
        if named := re.match(r"# (\S+\.toml)\n", file):
            (tmp_path / named[1]).write_text(file)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("OPTUNA_STORAGE", None)
    commands = [line for block in blocks("sh", tour) for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        done = subprocess.run(
            command, check=False, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout, command
    assert (tmp_path / "first-report" / "index.html").exists()
    for code in blocks("python", tour):
        done = subprocess.run(
            [sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{code}\n{done.stderr}"


def ours() -> Iterator[Path]:
    """All files and folders, but for hidden ones: the libraries' are many."""
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            yield path
            yield from path.rglob("*")


def test_what_the_readme_names_is_there() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / name).exists(), name
    house = blocks("", README.split("## The house")[1])[0]
    there = {f"/{path.relative_to(ROOT).as_posix()}" for path in ours()}
    for line in house.splitlines():
        name = line.split()[0] if line.split() else ""
        if name.endswith((".py", "/")):
            assert any(path.endswith(f"/{name.rstrip('/')}") for path in there), name
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def table(title: str, model: Any, about: str = "") -> list[str]:
    lines = [
        f"### {title}",
        "",
        *([about, ""] if about else []),
        "| key | type | default | |",
        "|---|---|---|---|",
    ]
    properties = model.model_json_schema(by_alias=True)["properties"]
    required = set(model.model_json_schema(by_alias=True).get("required", []))
    for key, schema in properties.items():
        default = (
            "**required**"
            if key in required
            else f"`{toml(schema['default'])}`"
            if "default" in schema
            else ""
        )
        lines.append(f"| `{key}` | {kind(schema)} | {default} | {schema.get('description', '')} |")
    return [*lines, ""]


def toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f'{{ name = "{value["name"]}" }}' if "name" in value else "{}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def kind(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return f'`"{schema["const"]}"`'
    if "enum" in schema:
        return " \\| ".join(
            f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in schema["enum"]
        )
    if "anyOf" in schema:
        kinds = dict.fromkeys(kind(part) for part in schema["anyOf"] if part.get("type") != "null")
        return " or ".join(kinds)
    if "$ref" in schema or "oneOf" in schema:
        return "table"
    if schema.get("type") == "array":
        inner = kind(schema.get("items", {}))
        if " or " in inner:
            inner = f"({inner})"
        return "array" if inner in ("", "table") else f"array of {inner}"
    return {"object": "table", "number": "float"}.get(schema.get("type", ""), schema.get("type", ""))


def fields() -> str:
    lines = table("The document", ComparisonDefinition)
    lines += [*table("[[objectives]]", NamedObjective), *table("[budget]", Budget)]
    for name, parameter in PARAMETER_TYPES.items():
        lines += table(f'[space.NAME], type = "{name}"', parameter)
    for table_name, settings in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        for name, model in settings.items():
            lines += table(f'[{table_name}], name = "{name}"', model, (model.__doc__ or "").strip())
    lines += [*table("[comparison]", Comparison), *table("[[comparison.arms]]", Arm)]
    return "\n".join(lines)


def test_the_table_of_fields_is_the_schemas() -> None:
    path = ROOT / "studies" / "README.md"
    before, rest = path.read_text().split("anew -->\n")
    _, after = rest.split("<!-- end of fields -->")
    wanted = f"{before}anew -->\n{fields()}<!-- end of fields -->{after}"
    if os.environ.get("UPDATE_DOCS") == "1":
        path.write_text(wanted)
    assert path.read_text() == wanted, "run: make docs"


def test_the_wheel_holds_the_studies(tmp_path: Path) -> None:
    """So that `tuner compare digits` works where only the wheel is installed."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert {"studies/digits.toml", "tuner/cli.py", "objectives/network/network.py"} <= set(held)
