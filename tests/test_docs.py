"""The pages for users: their commands run, what they name exists, and what they must name stands in them."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from pipeline.catalog import list_datasets
from pipeline.cli import main as command
from pipeline.config import Config, load_config
from pipeline.errors import Reason
from pipeline.model.bundle import REFERENCE, REQUIRED_FILES, Manifest
from pipeline.results.tables import FAILURE_COLUMNS, PREDICTION_COLUMNS
from pipeline.train.tracking import flatten
from services.api import problems
from services.api.options import Settings
from services.api.schemas import Failure, FrameAnswer, HeatmapAnswer, LabelAnswer, ModelAnswer, StudyAnswer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))) if page.is_file()]
RUN, PARSED = "sh", {"sh", "sh real", "console", "text"}
# Pages whose commands go on where those of another page ended.
AFTER = dict.fromkeys(("clinics.md", "integrators.md", "python.md", "training.md"), "data-scientists.md")
PORT = "8000"
SECONDS = 400


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind the fence, the text, and the line it begins on."""

    kind: str
    text: str
    line: int


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```([^\n`]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1].strip(), match[2], text.count("\n", 0, match.start()) + 1) for match in found]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def script(page: Path) -> str:
    """The blocks that run, in order: commands, and between them Python programs of all blocks that follow each other.

    `make` sets up and tests octray itself, and is left to the tests' own start.
    """
    parts = []
    for kind, group in groupby((one for one in blocks(page) if one.kind in (RUN, "python")), lambda one: one.kind):
        text = "".join(block.text for block in group)
        if kind == RUN:
            parts += [line for line in text.splitlines(keepends=True) if not line.startswith("make ")]
        else:
            parts.append(f"python - <<'END_OF_PROGRAM'\n{text}END_OF_PROGRAM\n")
    return "".join(parts)


RUNNING = [page for page in PAGES if script(page)]


# The commands run


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_page(page: Path, folder: Path) -> str:
    """Run a page's commands as one script and return what they wrote; whatever they started has to have ended."""
    lines = re.sub(rf"\b{PORT}\b", str(free_port()), script(page))
    if missing := [program for program in ("bash", "curl") if program in f"bash {lines}" and not shutil.which(program)]:
        pytest.skip(f"{', '.join(missing)} is not here, which the commands of {page.name} need")
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    data = os.environ.get("OCTRAY_SHARED_DATA", str(ROOT.parent / "shared" / "data"))
    environment = os.environ | {"PATH": places, "OCTRAY_SHARED_DATA": data, "OCTRAY_CORES": "1"}  # other tests have the others
    environment.pop("MLFLOW_TRACKING_URI", None)
    if (folder / "pipeline").is_dir():
        environment["PYTHONPATH"] = str(folder)
    output = folder.with_name(f"{folder.name}.txt")
    with output.open("w") as file:
        arguments = ["bash", "-euxo", "pipefail", "-c", lines]
        process = subprocess.Popen(
            arguments, cwd=folder, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code: int | None = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        left = end_group(process)
    said = output.read_text(errors="replace")
    assert (code, left) == (0, False), f"{page.name} ended with {code}; still running: {left}\n{said[-4000:]}"
    return said


def end_group(process: "subprocess.Popen[bytes]") -> bool:
    """End what a script left behind, and say whether there was anything."""
    left = False
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        left = True
    process.wait()
    return left


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands of the first page were run, in the order of its blocks."""
    folder = tmp_path_factory.mktemp("first") / "page"
    folder.mkdir()
    run_page(DOCS / "data-scientists.md", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if page == DOCS / "data-scientists.md":
        assert (request.getfixturevalue("finished") / "bundle" / "manifest.json").is_file()
        return
    folder = tmp_path / "page"
    if before := AFTER.get(page.name):
        assert before in prose(page).split("\n## ")[0], f"{page.name} must say that it goes on after {before}"
        shutil.copytree(request.getfixturevalue("finished"), folder, ignore=shutil.ignore_patterns("mlruns", "phantoms"))
    else:
        folder.mkdir()
    if page.name == "tutorial.md":  # it changes the code, so it runs in a copy
        for name_ in ("octray", "pipeline", "services", "configs", "data_catalog", "pyproject.toml"):
            (shutil.copytree if (ROOT / name_).is_dir() else shutil.copy)(ROOT / name_, folder / name_)
        (folder / "tests").mkdir()
    run_page(page, folder)


def test_pages_run_something() -> None:
    assert {page.name for page in RUNNING} >= {"data-scientists.md", "clinics.md", "integrators.md"}


# The commands that do not run are at least commands


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_escapes_by_its_name(page: Path) -> None:
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page))
    assert [block.line for block in blocks(page) if block.kind in ("", "bash", "shell", "zsh", "sh-session")] == []


def octray_commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of octray, whatever stands before it in its line and behind it."""
    for line in text.replace("\\\n", " ").splitlines():
        found: list[str] | None = None
        for word in shell_words(line):
            if set(word) <= set("();<>|&"):
                yield from [found] if found else []
                found = None
            elif found is not None:
                found.append(word)
            elif word == "octray" or word.endswith("bin/octray"):
                found = []
        yield from [found] if found else []


def shell_words(line: str) -> Iterator[str]:
    """Yield the words and operators of a line without its redirections, up to a quotation that goes on in the next one."""
    words = shlex.shlex(re.sub(r"\s\d?>&\d|\s\d?>>?\s*\S+|\s<\s*\S+", " ", line), posix=True, punctuation_chars=True)
    words.whitespace_split = True
    with suppress(ValueError):
        yield from words


CALLS = [
    pytest.param(call, id=f"{name(page)}:{block.line}: {shlex.join(call)}")
    for page in PAGES
    for block in blocks(page)
    if block.kind in PARSED
    for call in octray_commands(block.text)
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_of_octray_is_one(call: Sequence[str]) -> None:
    if "--help" in call:
        assert set(call) - {"--help"} <= set(command.COMMANDS)
        return
    args = command._parse(command.build_parser(), call)
    if hasattr(args, "overrides"):
        shipped = args.config.removesuffix(".yaml") in {"xray", "oct", "smoke"}
        load_config(args.config if shipped else "smoke", args.overrides)


def test_calls_are_found_in_their_lines() -> None:
    text = """
        $ octray models list | head -n 2 > file
        A=1 /opt/bin/octray score a --bundle b \\
            --out 'c d' 2> log && octray ui # a remark
        octray: a message
    """
    assert [*octray_commands(text)] == [["models", "list"], ["score", "a", "--bundle", "b", "--out", "c d"], ["ui"]]


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for page in PAGES:
        text = "".join(block.text for block in blocks(page)) + "\n".join(re.findall(r"`([^`\n]+)`", prose(page)))
        named |= set(re.findall(r"(?:^|[\s;&])make ([a-z]+)", text, re.MULTILINE))
    assert named >= {"demo", "test", "check", "bench", "serve", "clean"}
    assert named <= targets


# Nothing is missing


def rows(page: str) -> dict[str, list[str]]:
    """The rows of all tables of a page, by their first cell without its backticks."""
    lines = [line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def leaves(parser: ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield each command that can be run, with the names of its options and the metavars of its arguments."""
    branches = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    for action in branches:
        for word, branch in action.choices.items():
            yield from leaves(branch, (*words, word))
    if not branches:
        named = [action for action in parser._actions if action.dest != "help"]
        yield " ".join(words), [action.option_strings[0] if action.option_strings else str(action.metavar) for action in named]


COMMANDS = dict(leaves(command.build_parser()))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_stands_in_the_table_with_all_it_takes(words: str) -> None:
    arguments, meaning = rows("integrators.md")[f"octray {words}"]
    assert re.findall(r"`([^`]+)`", arguments) == COMMANDS[words]
    assert meaning


def test_the_table_has_no_command_that_is_gone() -> None:
    assert {row.removeprefix("octray ") for row in rows("integrators.md") if row.startswith("octray ")} == set(COMMANDS)


@pytest.mark.parametrize("page", ["clinics.md", "integrators.md"])
def test_every_exit_code_is_explained(page: str) -> None:
    codes = {command.DONE, command.SOME_FAILED, command.UNUSABLE, command.INTERRUPTED}
    found = {int(row) for row, cells in rows(page).items() if row.isdecimal() and int(row) < 256 and all(cells)}
    assert found == codes


def test_every_reason_is_explained_with_what_to_do() -> None:
    table = rows("clinics.md")
    for reason in Reason:
        assert [bool(cell) for cell in table[reason.value]] == [True, True], reason
    assert "no_label" in prose(DOCS / "data-scientists.md")


def test_every_problem_type_stands_in_the_table_with_its_status() -> None:
    table = {row: cells[0] for row, cells in rows("integrators.md").items() if row.startswith("urn:octray:problem:")}
    assert table == {cause.type: str(cause.status) for cause in problems.Cause}


DEFAULTS = Config(name="x").model_dump(mode="json")


@pytest.mark.parametrize("key", flatten(DEFAULTS))
def test_every_setting_stands_in_the_table_with_its_default(key: str) -> None:
    default, meaning = rows("data-scientists.md")[key]
    value: Any = DEFAULTS
    for part in key.split("."):
        value = value[part]
    assert meaning
    assert key == "name" or yaml.safe_load(default.strip("`")) == value


def test_the_table_has_no_setting_that_is_gone() -> None:
    sections = tuple(f"{section}." for section in Config.model_fields)
    found = {row for row, cells in rows("data-scientists.md").items() if row.startswith(sections) and len(cells) == 2}
    assert found | {key for key in DEFAULTS if not isinstance(DEFAULTS[key], dict)} == set(flatten(DEFAULTS))


def test_every_limit_of_the_service_stands_in_the_table_with_its_default() -> None:
    table = rows("integrators.md")
    for field in fields(Settings):
        value = getattr(Settings(), field.name)
        assert table[field.name][1] == value or float(table[field.name][1].replace(",", "")) == value


def test_every_column_of_the_results_is_explained() -> None:
    table, text = rows("clinics.md"), prose(DOCS / "clinics.md")
    assert all(table[column][0] for column in PREDICTION_COLUMNS)
    assert all(f"`{column}`" in text for column in FAILURE_COLUMNS)


def names(model: type[BaseModel]) -> Iterator[str]:
    """Yield the fields of a model, and those of the models and dataclasses that it holds."""
    for field, info in model.model_fields.items():
        yield field
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from names(kind)
            elif isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
                yield from kind.__dataclass_fields__


@pytest.mark.parametrize(
    "model", [StudyAnswer, FrameAnswer, LabelAnswer, HeatmapAnswer, Failure, ModelAnswer, problems.Problem]
)
def test_every_field_of_an_answer_is_explained(model: type[BaseModel]) -> None:
    text = prose(DOCS / "integrators.md")
    assert [field for field in names(model) if f"`{field}`" not in text] == []


def test_the_tables_of_an_answer_and_the_example_of_a_failure_are_whole() -> None:
    section = prose(DOCS / "integrators.md").partition("\n## The answer\n")[2].partition("\n## ")[0]
    first = "".join(re.findall(r"^\|([^|]*)\|", section, re.MULTILINE))
    for model in (StudyAnswer, FrameAnswer):
        assert [field for field in model.model_fields if f"`{field}`" not in first] == []
    (example,) = (json.loads(block.text) for block in blocks(DOCS / "integrators.md") if block.kind == "json")
    assert {*example["failures"][0]} == {*Failure.model_fields}


def test_every_field_of_the_manifest_and_every_file_of_a_bundle_is_explained() -> None:
    text = prose(DOCS / "integrators.md")
    assert [field for field in (*names(Manifest), *REQUIRED_FILES) if f"`{field}`" not in text] == []
    assert {*Manifest.model_fields} <= rows("integrators.md").keys()
    assert {*REQUIRED_FILES, REFERENCE, "manifest.json"} <= rows("data-scientists.md").keys()


def test_every_format_of_a_card_stands_in_the_table_of_what_is_read() -> None:
    named = set(re.findall(r"\*\*([^*]+)\*\*", prose(DOCS / "formats.md")))
    assert {form for card in list_datasets() for form in card.formats} <= named
    assert {"DICOM", "PNG", "JPEG", "TIFF"} <= named


def test_the_contract_and_the_rooms_are_those_of_the_program() -> None:
    texts = [block.text for block in blocks(DOCS / "architecture.md")]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert "\n".join(contracts[0]["layers"]) + "\n" in texts
    tree = next(text for text in texts if "\npipeline/\n" in text)
    named = {words[0].rstrip("/") for line in tree.splitlines() if (words := line.split())}
    tops = [ROOT / name for name in ("octray", "configs", "data_catalog", "tests", "benchmarks", "docs")]
    inside = [path for package in ("pipeline", "services") for path in (ROOT / package).iterdir()]
    wanted = {path.name for path in (*tops, *inside) if not path.name.startswith("__") and path.name != "py.typed"}
    assert named == wanted | {"pipeline", "services"}


# Pages hold together


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown reader makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    broken = []
    for target in targets:
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        if re.match(r"[a-z]+:", target):
            continue
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"], ids=name)
def test_a_page_opens_by_saying_for_whom_it_is(page: Path) -> None:
    title, first, *_ = page.read_text(encoding="utf-8").split("\n\n")
    assert title.startswith("# ")
    assert first.startswith("This page is for people who ")
