"""Measures the structure and the prose of the source: `python -m benchmarks.house [REPOSITORY] [--names]`.

One line a figure: modules and their length, dataclasses, functions above 60 lines, circles of imports, names with several
meanings, "where" that means "if", and commit subjects that are too long. With --names, the names and where they are defined.

How each is counted:

- A module is a Python file in `pipeline/` or `services/` with more than its docstring.
- A dataclass has a method if its body defines a function; `__post_init__` counts.
- A circle is a set of modules of which each imports the others, be it through further ones (strongly connected components of
  the graph of imports that grimp builds; imports inside functions and under TYPE_CHECKING count).
- A name has several meanings if two modules define a public class, function or type alias of that name, or if two modules
  outside the command line have the same file name. `__init__.py`, `__main__.py`, type variables, and what commands and
  migrations define alike by agreement (`run`, `upgrade` and so on) do not count.
- "where" means "if" unless a word for a place or a thing in which something can be stands before it ("the folder where"), or it
  opens an indirect question ("say where", "see where it lies"): a heuristic over all docstrings that finds nearly all such
  conditions ("where there is none", "where a file is damaged") and a few sentences that really speak of a place.
"""

import argparse
import ast
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp

ROOMS = ("pipeline", "services")
FIRST_COMMIT = "217467d"
MOST_LINES, MOST_CHARACTERS = 60, 72
SHARED_NAMES = {"main", "run", "add_arguments", "upgrade", "downgrade"}
SHARED_MODULES = {"__init__", "__main__"}
_ASKS = (
    *("say", "says", "said", "know", "knows", "tell", "tells", "show", "shows", "see", "sees", "find", "finds", "and", "from"),
    *("is", "look", "looks", "remember", "remembers", "mark", "marks", "states", "learn", "ask", "asks", "to"),
)
_PLACES = (
    *("place", "places", "folder", "file", "directory", "position", "point", "side", "edge", "row", "rows", "column", "part"),
    *("machine", "address", "byte", "pixel", "cell", "corner", "line", "page", "table", "section", "spot", "offset", "height"),
)
_WHERE = re.compile(r"(?:([\w'-]+)([^\w\s]*)\s+)?\bwhere\b", re.IGNORECASE)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the structure and the prose of the source.")
    parser.add_argument("repository", type=Path, nargs="?", default=Path.cwd())
    parser.add_argument("--names", action="store_true", help="list the names with several meanings, and end with 1 if any")
    arguments = parser.parse_args()
    trees = dict(parsed(arguments.repository))
    names = several_meanings(trees)
    if arguments.names:
        for name, places in sorted(names.items()):
            print(f"{name}: {', '.join(places)}")
        return 1 if names else 0
    lengths = [len((arguments.repository / path).read_text(encoding="utf-8").splitlines()) for path in trees]
    dataclasses = [node for tree in trees.values() for node in ast.walk(tree) if _is_dataclass(node)]
    plain = [node for node in dataclasses if not any(isinstance(one, ast.FunctionDef) for one in node.body)]
    wheres, words = _wheres(trees)
    print(f"modules: {len(trees)}, median {statistics.median(lengths):.0f} lines")
    print(f"dataclasses: {len(dataclasses)}, without any method: {len(plain)}")
    print(f"functions above {MOST_LINES} lines: {sum(1 for tree in trees.values() for _ in _long_functions(tree))}")
    print(f"circles of imports: {len(circles(arguments.repository))}")
    print(f"names with several meanings: {len(names)}")
    print(f'"where" meaning "if" per 1,000 words of docstrings: {1000 * wheres / words:.1f} ({wheres} in {words} words)')
    long, subjects = _subjects(arguments.repository)
    print(f"commit subjects above {MOST_CHARACTERS} characters since {FIRST_COMMIT}: {long} of {subjects}")
    return 0


def several_meanings(trees: Mapping[Path, ast.Module]) -> dict[str, list[str]]:
    """Return the public names that several modules define, and the file names that several modules have, with these modules."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path, tree in trees.items():
        if path.stem not in SHARED_MODULES and "cli" not in path.parts:
            places[f"{path.stem}.py"].append(str(path.parent))
        for name in _defined(tree):
            if not name.startswith("_") and name not in SHARED_NAMES:
                places[name].append(str(path))
    return {name: found for name, found in places.items() if len(found) > 1}


def parsed(repository: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the path and the syntax tree of each module."""
    for room in ROOMS:
        for path in sorted((repository / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if len(tree.body) > 1:
                yield path.relative_to(repository), tree


def _defined(tree: ast.Module) -> Iterator[str]:
    """Yield the classes, functions and type aliases of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            is_variable = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "TypeVar"
            if re.match("[A-Z][a-z]", node.targets[0].id) and not is_variable:
                yield node.targets[0].id


def _is_dataclass(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(one) for one in node.decorator_list)


def _long_functions(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MOST_LINES:
                yield node


def circles(repository: Path) -> list[set[str]]:
    """Return the strongly connected components of more than one module (Tarjan 1972)."""
    sys.path.insert(0, str(repository))
    try:
        graph = grimp.build_graph(*ROOMS, cache_dir=None)
    finally:
        sys.path.remove(str(repository))
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in graph.find_modules_directly_imported_by(module):
            if other not in order:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            circle = set(stack[stack.index(module) :])
            del stack[stack.index(module) :]
            if len(circle) > 1:
                circles.append(circle)

    sys.setrecursionlimit(10_000)
    for module in sorted(graph.modules):
        if module not in order:
            visit(module)
    return circles


def _wheres(trees: Mapping[Path, ast.Module]) -> tuple[int, int]:
    """Return how often "where" means "if" in docstrings, and how many words they have."""
    found = words = 0
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                words += len(text.split())
                found += sum(_means_if(match) for match in _WHERE.finditer(text))
    return found, words


def _means_if(match: re.Match[str]) -> bool:
    word, mark = (match[1] or "").lower(), match[2] or ""
    return bool(mark) or word not in (*_ASKS, *_PLACES)


def _subjects(repository: Path) -> tuple[int, int]:
    command = ["git", "-C", str(repository), "log", "--format=%s", f"{FIRST_COMMIT}..HEAD"]
    subjects = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return sum(len(subject) > MOST_CHARACTERS for subject in subjects), len(subjects)


if __name__ == "__main__":
    sys.exit(main())
