"""Follow names through source text: which statement, in which file, a dotted path leads to in the end.

Python's own import system is asked for one thing only: in which folder a top-level package lies. Nothing is imported.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fac_lightning.config.errors import did_you_mean

__all__ = ["BadPath", "Def", "Module", "Unreadable", "lookup", "module_file", "public_names", "read_module", "resolve"]


class BadPath(LookupError):
    """A dotted path that leads nowhere; the text says where it ends and what is there instead."""


class Unreadable(Exception):
    """Source text does not tell (compiled, generated or dynamic code); only an import would."""


@dataclass
class Module:
    """What a module's source binds at import."""

    name: str
    is_package: bool
    bound: dict[str, ast.AST] = field(default_factory=dict)  # name -> the statement that binds it
    stars: list[str] = field(default_factory=list)  # modules of ``from x import *``
    dynamic: bool = False  # has a module-level __getattr__


Def = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public_names(module: str) -> list[str]:
    """Names in the ``__all__`` of a module, or its public names where it has none."""
    return public(read_module(module))


def no_package(name: str) -> str:
    near = Path(name).is_dir() or Path(f"{name}.py").is_file()
    if near and not {"", str(Path.cwd())} & set(sys.path):
        return (
            f"'{name}' lies in the working folder, which the 'fac' command does not search. "
            "Start with 'python -m fac_lightning ...' instead of 'fac ...', or install it."
        )
    hint = did_you_mean(name, ["fac_lightning", "torch", "lightning", "transformers"])
    return f"no package or module named '{name}' is installed or in the working folder.{hint}"


def module_file(name: str) -> tuple[Path, bool] | None:
    """File and whether it is a package of a module; a namespace package is its folder. None where there is none."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError) as error:  # ValueError: a module made at run time has no spec
        raise Unreadable(top) from error
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    here = (Path(spec.origin), bool(folders)) if spec.origin and spec.origin != "frozen" else None
    if here is None:
        if not folders:
            raise Unreadable(top)
        here = (folders[0], True)
    for part in rest:
        for folder in folders:
            package, file = folder / part, folder / f"{part}.py"
            if (package / "__init__.py").is_file():
                here, folders = (package / "__init__.py", True), [package]
                break
            if file.is_file():
                here, folders = (file, False), []
                break
            if package.is_dir():
                here, folders = (package, True), [package]
                break
            if any(folder.glob(f"{part}.*.so")) or any(folder.glob(f"{part}.*.pyd")):
                raise Unreadable(f"{name} is compiled")
        else:
            return None
    return here


def read_module(name: str) -> Module:
    """Source of a module, parsed once.

    Raises:
        BadPath: There is no such module.
        Unreadable: It is no Python source.
    """
    place = module_file(name)
    if place is None:
        raise BadPath(f"there is no module '{name}'.")
    file, is_package = place
    if file.is_dir():
        return Module(name, is_package)
    if file.suffix != ".py":
        raise Unreadable(f"{name} is no Python source")
    return _parse(name, str(file), is_package, file.stat().st_mtime_ns)


@cache
def _parse(name: str, file: str, is_package: bool, _mtime: int) -> Module:
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except SyntaxError as error:
        raise BadPath(f"{file}, line {error.lineno}: {error.msg}.") from None
    module = Module(name, is_package)
    for statement in flat(tree.body):
        match statement:
            case ast.ImportFrom():
                origin = _origin(module, statement)
                for alias in statement.names:
                    if alias.name == "*":
                        module.stars.append(origin)
                    else:
                        moved = ast.ImportFrom(origin, [alias], 0)
                        module.bound[alias.asname or alias.name] = moved
            case ast.Import():
                for alias in statement.names:
                    target = alias if alias.asname else ast.alias(alias.name.split(".")[0])
                    module.bound[alias.asname or target.name] = ast.Import([target])
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if not decorated(statement, "overload"):
                    module.bound[statement.name] = statement
                    module.dynamic |= statement.name == "__getattr__"
            case ast.Assign():
                for node in statement.targets:
                    if isinstance(node, ast.Name):
                        module.bound[node.id] = statement.value
            case ast.AnnAssign(target=ast.Name(), value=ast.expr()):
                module.bound[statement.target.id] = statement.value  # type: ignore[union-attr, assignment]
    return module


def flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import; what an ``except`` or ``else`` binds comes first, so that the main branch wins."""
    for statement in body:
        match statement:
            case ast.If():
                yield from flat(statement.orelse)
                yield from flat(statement.body)
            case ast.Try():
                for handler in statement.handlers:
                    yield from flat(handler.body)
                yield from flat([*statement.body, *statement.orelse, *statement.finalbody])
            case ast.With():
                yield from flat(statement.body)
            case _:
                yield statement


def _origin(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - statement.level + module.is_package]
    return ".".join([*parts, statement.module] if statement.module else parts)


def public(module: Module) -> list[str]:
    listed = module.bound.get("__all__")
    if isinstance(listed, ast.List | ast.Tuple):
        return [item.value for item in listed.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return [name for name in module.bound if not name.startswith("_")]


# names


def lookup(module: Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Module | tuple[Module, Def]:
    """What a name in a module is in the end, imports followed."""
    if (module.name, name) in seen:
        raise Unreadable(f"{module.name}.{name} goes round in a circle")
    seen |= {(module.name, name)}
    statement = module.bound.get(name)
    match statement:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return module, statement
        case ast.ImportFrom():
            origin, wanted = statement.module or "", statement.names[0].name
            if origin != module.name:
                try:
                    return lookup(read_module(origin), wanted, seen)
                except BadPath:
                    if module_file(origin) is None or module_file(f"{origin}.{wanted}") is None:
                        raise
            return read_module(f"{origin}.{wanted}")
        case ast.Import():
            return read_module(statement.names[0].name)
        case ast.Name() | ast.Attribute():
            found = resolve(module, statement, seen)
            if found is None:
                raise Unreadable(f"{module.name}.{name} is built in")
            return found
        case ast.AST():
            raise Unreadable(f"{module.name}.{name} is computed")
    if module.is_package and module_file(f"{module.name}.{name}") is not None:
        return read_module(f"{module.name}.{name}")
    for star in module.stars:
        try:
            return lookup(read_module(star), name, seen)
        except BadPath:
            continue
    if module.dynamic:
        raise Unreadable(f"{module.name} makes its names at run time")
    names = public(module)
    hint = did_you_mean(name, names) or (f" It has: {', '.join(names[:12])}." if names else "")
    raise BadPath(f"{module.name} has no {name!r}.{hint}")


def resolve(
    module: Module, node: ast.expr, seen: frozenset[tuple[str, str]] = frozenset()
) -> Module | tuple[Module, Def] | None:
    """What an expression such as ``nn.Module`` or ``Base[int]`` names; None for a builtin."""
    match node:
        case ast.Subscript():
            return resolve(module, node.value, seen)
        case ast.Name():
            if node.id not in module.bound and hasattr(builtins, node.id):
                return None
            return lookup(module, node.id, seen)
        case ast.Attribute():
            owner = resolve(module, node.value, seen)
            if isinstance(owner, Module):
                return lookup(owner, node.attr, seen)
    raise Unreadable(f"{module.name}: {ast.unparse(node)}")


def dotted(module: Module, node: ast.expr) -> str:
    """``torch.nn.Module`` for ``nn.Module`` below ``from torch import nn``; no file is opened."""
    match node:
        case ast.Subscript():
            return dotted(module, node.value)
        case ast.Attribute():
            return f"{dotted(module, node.value)}.{node.attr}"
        case ast.Name():
            match module.bound.get(node.id):
                case ast.ImportFrom() as statement:
                    return f"{statement.module}.{statement.names[0].name}"
                case ast.Import() as statement:
                    return statement.names[0].name
            return node.id
    return ""


def decorated(node: Def, name: str) -> bool:
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(called).split(".")[-1] == name:
            return True
    return False
