"""The modelling file that travels with a student: our modules, and the user's operations, as one Python file."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from torch import nn

from adasearch.errors import ModelError
from adasearch.files import write_text


def modelling_modules(model: nn.Module) -> list[ModuleType]:
    """The modules of ours and of the user's operations that the model's classes need; what others import comes first.

    The user's are those that import adasearch. ``modelling_source(modelling_modules(student))`` of an untrained student
    tells before the work begins whether it can be saved. Raises ``ModelError`` when a module cannot travel.
    """
    ordered: dict[str, ModuleType] = {}
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            for node in _own_imports(name, ast.parse(_source(sys.modules[name]))):
                if (
                    node.module != "adasearch"
                ):  # names taken from the package itself are found in the modules they are of
                    visit(str(node.module))
            ordered[name] = sys.modules[name]

    roots = {cls.__module__ for part in model.modules() for cls in type(part).__mro__} - {"builtins"}
    for root in sorted(roots, key=lambda name: (not _is_ours(name), name)):  # theirs lean on ours
        if root == "__main__" or _is_ours(root) or "adasearch" in _source(sys.modules[root]):
            visit(root)
    return list(ordered.values())


def modelling_source(modules: Sequence[ModuleType]) -> str:
    """The modules as one Python file that does not need adasearch; modules come after those they import from.

    Imports are merged at the top, module docstrings become comments, everything else stays as written. Raises
    ``ModelError`` when two modules give one name two meanings, or one imports from adasearch what none of them defines.
    """
    imports: dict[str, str] = {}  # name -> the import that binds it
    owners: dict[str, tuple[str, list[str]]] = {}  # name -> module and statements that define it
    parts: list[str] = []

    def define(name: str, module: str, statements: list[str]) -> None:
        owner, known = owners.get(name, (module, statements))
        is_same = owner == module or known == statements and " = " in statements[0]  # equal constants do not quarrel
        if name in imports or not is_same and not name.startswith("__"):
            where = owner if name not in imports else repr(imports[name])
            raise ModelError(
                f"{module}: top-level name {name!r} also means something else in {where}; rename one of them"
            )
        owners[name] = (owner, known)

    for module in modules:
        source, where = _source(module), module.__name__
        tree = ast.parse(source)
        edits: list[tuple[ast.stmt, str]] = []
        statements: dict[str, list[str]] = {}
        for node in _own_imports(where, tree):
            for alias in node.names:
                if alias.name not in owners:
                    raise ModelError(
                        f"{where}: line {node.lineno}: {alias.name!r} is not defined by what travels with the student"
                    )
            renamed = [
                f"{alias.asname} = {alias.name}" for alias in node.names if alias.asname not in (None, alias.name)
            ]
            if node in tree.body:
                statements.update({line.split(" = ")[0]: [line] for line in renamed})
            edits.append((node, "; ".join(renamed) or ("" if node in tree.body else "pass")))
        own = {node for node, _ in edits}
        for node in tree.body:
            if node is tree.body[0] and ast.get_docstring(tree) is not None:
                edits.append((node, "\n".join(f"# {line}".rstrip() for line in ast.get_docstring(tree).splitlines())))
            elif _is_type_checking(node):
                edits.append((node, ""))
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                if node not in own:
                    edits.append((node, ""))
                    _collect_import(where, node, imports, owners)
            else:
                text = ast.unparse(node)
                for name in _defined(node):
                    statements.setdefault(name, []).append(text)
        for name, lines in statements.items():
            define(name, where, lines)
        parts.append(f"# {f' {where} ':-^100}\n{_edit(source, edits).strip()}")
    header = (
        "# The model of this folder in one file, made from its modules; adasearch itself is not needed. Apache-2.0.\n"
    )
    grouped: dict[str, list[str]] = {}
    for line in sorted(set(imports.values()), key=lambda line: (line.startswith("from"), line)):
        start, _, name = line.rpartition(" import ")
        grouped.setdefault(f"{start} import " if start else line, []).append(name if start else "")
    ordered = [start + ", ".join(names) for start, names in grouped.items()]
    return (
        "\n".join([header, "from __future__ import annotations", "", *ordered, ""])
        + "\n\n"
        + "\n\n\n".join(parts)
        + "\n"
    )


def bundle_modelling(modules: Sequence[ModuleType], path: Path) -> None:
    """Write ``modelling_source`` to a file. Raises ``ModelError`` as it does."""
    source = modelling_source(modules)
    compile(source, path.name, "exec")
    write_text(path, source)


def _is_ours(name: str | None) -> bool:
    return (name or "").partition(".")[0] == "adasearch"


def _defined(node: ast.AST) -> set[str]:
    """Names that a top-level statement binds in its module; imports are not counted."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        return set()  # what they bind is their own
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    return {name for child in ast.iter_child_nodes(node) for name in _defined(child)}


def _is_type_checking(node: ast.AST) -> bool:
    """Whether it is an ``if TYPE_CHECKING:``, which never runs."""
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _source(module: ModuleType) -> str:
    if module.__name__ == "__main__":
        raise ModelError(
            "__main__: an operation is defined in the script itself; put it into a module that the script imports"
        )
    try:
        return inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise ModelError(
            f"{module.__name__}: its source cannot be read, so it cannot travel with the student"
        ) from error


def _own_imports(where: str, tree: ast.AST) -> list[ast.ImportFrom]:
    """``from adasearch... import`` statements that may run, wherever they stand; ``ModelError`` for other forms."""
    found: list[ast.ImportFrom] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
            raise ModelError(
                f"{where}: line {node.lineno}: {ast.unparse(node)!r} cannot travel; "
                "write: from adasearch.MODULE import NAME"
            )
        if isinstance(node, ast.ImportFrom) and (node.level or any(alias.name == "*" for alias in node.names)):
            raise ModelError(
                f"{where}: line {node.lineno}: {ast.unparse(node)!r} cannot travel; write: from MODULE import NAME"
            )
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module):
            found.append(node)
        elif not _is_type_checking(node):
            found += _own_imports(where, node)
    return found


def _collect_import(
    where: str, node: ast.Import | ast.ImportFrom, imports: dict[str, str], owners: dict[str, tuple[str, list[str]]]
) -> None:
    """Note what a top-level import binds. Raises ``ModelError`` when the name is taken by something else."""
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        return
    start = f"from {node.module} import" if isinstance(node, ast.ImportFrom) else "import"
    for alias in node.names:
        line = f"{start} {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
        bound = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0])
        key = (
            alias.name if isinstance(node, ast.Import) and not alias.asname else bound
        )  # import a.b and a.c both bind a
        other = owners[bound][0] if bound in owners else repr(imports[key]) if imports.get(key, line) != line else None
        if other is not None:
            raise ModelError(
                f"{where}: {line!r}: top-level name {bound!r} also means something else in {other}; rename one of them"
            )
        imports[key] = line


def _edit(source: str, edits: Sequence[tuple[ast.stmt, str]]) -> str:
    """The source with statements replaced; one that becomes nothing takes its lines along if it is alone on them."""
    data = source.encode()  # columns of the syntax tree count bytes
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, text in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        rest = data[end : starts[node.end_lineno]].strip()
        if not text and node.col_offset == 0 and (not rest or rest.startswith(b"#")):
            end = starts[node.end_lineno]
        data = data[:begin] + (text or ("" if end == starts[node.end_lineno] else "pass")).encode() + data[end:]
    return data.decode()
