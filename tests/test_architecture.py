"""The file's eight sections use only what stands above them, and each touches only what it may."""

from __future__ import annotations

import ast
import re

import pytest
from support import SCRIPT

SOURCE = SCRIPT.read_text(encoding="utf-8")

SECTIONS = ["Constants", "Model", "Store", "Planner", "Workers", "Orchestrator", "Rendering", "Commands"]

# Modules and built-ins that only these sections may use.
RESERVED = {
    "sqlite3": {3, 8},  # 8: the demo makes a database of its own
    "subprocess": {5, 6, 8},
    "psutil": {5, 6},
    "signal": {2, 5, 6, 8},
    "fcntl": {5, 6},
    "select": {5},
    "termios": {8},
    "time": {5, 6, 7, 8},
    "datetime": {2, 5},
    "os": {3, 5, 6, 8},
    "open": {3, 5, 6, 8},
    "shutil": {5, 8},
    "rich": {7, 8},
    "sys": {5, 8},
    "random": set(),
    "print": set(),
}


def section_starts(source: str) -> list[int]:
    """Return the line on which each section begins."""
    return [number for number, line in enumerate(source.splitlines(), 1) if re.match(r"# ── [1-8]\. ", line)]


def defined_names(node: ast.stmt) -> list[str]:
    """Return the names that a top-level statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def used_names(node: ast.stmt) -> list[tuple[str, int]]:
    """Return the names that a statement reads, and the packages that it imports, with their lines."""
    names = [(n.id, n.lineno) for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    imports = [n for n in ast.walk(node) if isinstance(n, ast.ImportFrom)]
    return names + [((n.module or "").split(".")[0], n.lineno) for n in imports]


def find_violations(source: str) -> list[str]:
    """Return every use of a name from a section below, and of a module that the section may not touch."""
    starts = section_starts(source)
    nodes = [node for node in ast.parse(source).body if node.lineno > starts[0]]
    section = {id(node): sum(node.lineno > start for start in starts) for node in nodes}
    home = {name: section[id(node)] for node in nodes for name in defined_names(node)}
    violations = []
    for node in nodes:
        here = section[id(node)]
        for name, line in used_names(node):
            if home.get(name, 0) > here:
                violations.append(f"line {line}: section {here} uses {name} of section {home[name]}")
            elif name in RESERVED and here not in RESERVED[name] and not is_entry_point(node):
                violations.append(f"line {line}: section {here} touches {name}")
    return violations


def is_entry_point(node: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__"`."""
    return isinstance(node, ast.If)


def with_line_in_planner(line: str) -> str:
    """Return the source with one more line in `plan`."""
    head = "    streams = {stream.id: stream for stream in snapshot.streams}\n    actions: list[Action] = []\n"
    assert SOURCE.count(head) == 1
    return SOURCE.replace(head, f"{head}    {line}\n")


def test_the_file_has_its_eight_sections_in_order() -> None:
    titles = re.findall(r"^# ── ([1-8])\. (\w+) ─+$", SOURCE, re.MULTILINE)
    assert titles == [(str(number), title) for number, title in enumerate(SECTIONS, 1)]


def test_a_section_uses_only_names_of_sections_above_it() -> None:
    assert find_violations(SOURCE) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("read_process_table()", "section 4 uses read_process_table of section 5"),
        ("now = time.monotonic()", "section 4 touches time"),
        ("os.kill(1, 0)", "section 4 touches os"),
        ("open('x')", "section 4 touches open"),
        ("from rich.text import Text", "section 4 touches rich"),
        ("print(now)", "section 4 touches print"),
    ],
)
def test_the_check_finds_what_breaks_the_rule(line: str, complaint: str) -> None:
    violations = find_violations(with_line_in_planner(line))
    assert [violation.partition(": ")[2] for violation in violations] == [complaint]


def test_rich_is_imported_only_where_it_is_used() -> None:
    top = [node for node in ast.parse(SOURCE).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert not [module for module in modules if module.startswith("rich")]


def test_functions_are_short() -> None:
    lengths = {}
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lengths[f"{node.name}:{node.lineno}"] = (node.end_lineno or 0) - body[0].lineno + 1
    assert {name: length for name, length in lengths.items() if length > 40} == {}
