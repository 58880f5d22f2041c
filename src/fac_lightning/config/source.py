"""Read what a dotted path takes from source text, so that a recipe is checked before anything heavy is imported.

``find("torch.optim.AdamW")`` parses ``torch/optim/__init__.py``, follows ``from torch.optim.adamw import AdamW`` and
gives the arguments of the constructor as they are written. Python's own import system is asked for one thing only:
in which folder the top-level package lies.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fac_lightning.config.errors import did_you_mean

__all__ = ["Argument", "BadPath", "Definition", "Unreadable", "define", "find", "locate", "public_names"]

#: Their ``__init__`` is written ``(*args, **kwargs)`` but takes nothing, or there is none: nothing to read further.
_TAKES_NOTHING = {
    "object",
    "abc.ABC",
    "typing.Generic",
    "typing.Protocol",
    "torch.nn.Module",
    "torch.utils.data.Dataset",
    "torch.utils.data.IterableDataset",
    "lightning.LightningModule",
    "lightning.pytorch.LightningModule",
    "lightning.pytorch.core.LightningModule",
    "lightning.LightningDataModule",
    "lightning.pytorch.LightningDataModule",
    "lightning.Callback",
    "lightning.pytorch.Callback",
    "lightning.pytorch.callbacks.Callback",
}


class BadPath(LookupError):
    """A dotted path that leads nowhere; the text says where it ends and what is there instead."""


class Unreadable(Exception):
    """Source text does not tell (compiled, generated or dynamic code); only an import would."""


@dataclass(frozen=True)
class Argument:
    """One argument of a callable, as written in its source."""

    name: str
    annotation: str = ""
    default: str | None = None  # None: required

    def __str__(self) -> str:
        text = f"{self.name}: {self.annotation}" if self.annotation else self.name
        return text if self.default is None else f"{text} = {self.default}"


@dataclass(frozen=True)
class Definition:
    """A class or function behind a dotted path."""

    path: str  # where it is defined: "fac_lightning.heads.refined.RefinedHead"
    arguments: tuple[Argument, ...]
    open: bool = False  # has **kwargs: takes any argument
    doc: str = ""
    abstract: bool = False

    @property
    def names(self) -> list[str]:
        """Argument names in order."""
        return [argument.name for argument in self.arguments]

    def takes(self, name: str) -> bool:
        """Whether ``name=...`` can be passed."""
        return self.open or name in self.names


@dataclass
class _Module:
    name: str
    is_package: bool
    bound: dict[str, ast.AST] = field(default_factory=dict)  # name -> the statement that binds it
    stars: list[str] = field(default_factory=list)  # modules of ``from x import *``
    dynamic: bool = False  # has a module-level __getattr__


_Def = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def find(path: str) -> Definition:
    """Definition of a dotted path, read from source alone.

    Raises:
        BadPath: It leads nowhere; the text says why and suggests.
        Unreadable: Source does not tell; ``define`` imports then.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise BadPath(f"{path!r} is not a dotted path to a class or function, such as 'torch.optim.AdamW'.")
    count = max((n for n in range(1, len(parts)) if _locate_module(".".join(parts[:n])) is not None), default=0)
    if count == 0:
        raise BadPath(_no_package(parts[0]))
    here: _Module | tuple[_Module, _Def] = _read(".".join(parts[:count]))
    for i in range(count, len(parts)):
        if isinstance(here, _Module):
            here = _lookup(here, parts[i])
        elif isinstance(here[1], ast.ClassDef) and i == len(parts) - 1:
            return _method(here[0], here[1], parts[i])
        else:
            raise BadPath(f"{'.'.join(parts[:i])} is a function and has no {parts[i]!r}.")
    if isinstance(here, _Module):
        names = ", ".join(_public(here)[:8])
        raise BadPath(f"{path} is a module; name a class or function in it{': ' + names if names else ''}.")
    return _define(*here)


def define(path: str) -> Definition:
    """Definition of a dotted path: read from source, or imported where source does not tell.

    Raises:
        BadPath: It leads nowhere, or its import fails.
    """
    try:
        return find(path)
    except Unreadable:
        try:
            return _imported(path)
        except ImportError as error:
            raise BadPath(f"{path} cannot be imported: {error}.") from error


def _imported(path: str) -> Definition:
    target = locate(path)
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return Definition(path, (), open=True)
    arguments = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            empty = parameter.annotation is parameter.empty
            annotation = "" if empty else inspect.formatannotation(parameter.annotation)
            default = None if parameter.default is parameter.empty else repr(parameter.default)
            arguments.append(Argument(parameter.name, annotation, default))
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    where = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return Definition(where, tuple(arguments), is_open, inspect.getdoc(target) or "")


def locate(path: str) -> Callable[..., Any]:
    """Import the class or function behind a dotted path.

    Raises:
        BadPath: It leads nowhere or to something that cannot be called.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise BadPath(f"{path!r} is not a dotted path to a class or function, such as 'torch.optim.AdamW'.")
    try:
        here: Any = importlib.import_module(parts[0])
    except ModuleNotFoundError as error:
        if error.name != parts[0]:
            raise
        raise BadPath(_no_package(parts[0])) from None
    for i, part in enumerate(parts[1:], start=1):
        is_last = i == len(parts) - 1
        if isinstance(here, ModuleType) and not (is_last and hasattr(here, part)):
            name = ".".join([here.__name__, part])
            if hasattr(here, "__path__") and importlib.util.find_spec(name) is not None:
                here = importlib.import_module(name)
                continue
        if not hasattr(here, part):
            raise BadPath(f"{'.'.join(parts[:i])} has no {part!r}.{did_you_mean(part, dir(here))}")
        here = getattr(here, part)
    if not callable(here):
        raise BadPath(f"{path} is a {type(here).__name__}; name a class or function.")
    return here  # type: ignore[no-any-return]


def public_names(module: str) -> list[str]:
    """Names in the ``__all__`` of a module, or its public names where it has none."""
    return _public(_read(module))


# modules


def _no_package(name: str) -> str:
    near = Path(name).is_dir() or Path(f"{name}.py").is_file()
    if near and not {"", str(Path.cwd())} & set(sys.path):
        return (
            f"'{name}' lies in the working folder, which the 'fac' command does not search. "
            "Start with 'python -m fac_lightning ...' instead of 'fac ...', or install it."
        )
    hint = did_you_mean(name, ["fac_lightning", "torch", "lightning", "transformers"])
    return f"no package or module named '{name}' is installed or in the working folder.{hint}"


def _locate_module(name: str) -> tuple[Path, bool] | None:
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


def _read(name: str) -> _Module:
    place = _locate_module(name)
    if place is None:
        raise BadPath(f"there is no module '{name}'.")
    file, is_package = place
    if file.is_dir():
        return _Module(name, is_package)
    if file.suffix != ".py":
        raise Unreadable(f"{name} is no Python source")
    return _parse(name, str(file), is_package, file.stat().st_mtime_ns)


@cache
def _parse(name: str, file: str, is_package: bool, _mtime: int) -> _Module:
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except SyntaxError as error:
        raise BadPath(f"{file}, line {error.lineno}: {error.msg}.") from None
    module = _Module(name, is_package)
    for statement in _flat(tree.body):
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
                if not _decorated(statement, "overload"):
                    module.bound[statement.name] = statement
                    module.dynamic |= statement.name == "__getattr__"
            case ast.Assign():
                for node in statement.targets:
                    if isinstance(node, ast.Name):
                        module.bound[node.id] = statement.value
            case ast.AnnAssign(target=ast.Name(), value=ast.expr()):
                module.bound[statement.target.id] = statement.value  # type: ignore[union-attr, assignment]
    return module


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import; what an ``except`` or ``else`` binds comes first, so that the main branch wins."""
    for statement in body:
        match statement:
            case ast.If():
                yield from _flat(statement.orelse)
                yield from _flat(statement.body)
            case ast.Try():
                for handler in statement.handlers:
                    yield from _flat(handler.body)
                yield from _flat([*statement.body, *statement.orelse, *statement.finalbody])
            case ast.With():
                yield from _flat(statement.body)
            case _:
                yield statement


def _origin(module: _Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - statement.level + module.is_package]
    return ".".join([*parts, statement.module] if statement.module else parts)


def _public(module: _Module) -> list[str]:
    listed = module.bound.get("__all__")
    if isinstance(listed, ast.List | ast.Tuple):
        return [item.value for item in listed.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return [name for name in module.bound if not name.startswith("_")]


# names


def _lookup(
    module: _Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()
) -> _Module | tuple[_Module, _Def]:
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
                    return _lookup(_read(origin), wanted, seen)
                except BadPath:
                    if _locate_module(origin) is None or _locate_module(f"{origin}.{wanted}") is None:
                        raise
            return _read(f"{origin}.{wanted}")
        case ast.Import():
            return _read(statement.names[0].name)
        case ast.Name() | ast.Attribute():
            found = _resolve(module, statement, seen)
            if found is None:
                raise Unreadable(f"{module.name}.{name} is built in")
            return found
        case ast.AST():
            raise Unreadable(f"{module.name}.{name} is computed")
    if module.is_package and _locate_module(f"{module.name}.{name}") is not None:
        return _read(f"{module.name}.{name}")
    for star in module.stars:
        try:
            return _lookup(_read(star), name, seen)
        except BadPath:
            continue
    if module.dynamic:
        raise Unreadable(f"{module.name} makes its names at run time")
    raise BadPath(f"{module.name} has no {name!r}.{did_you_mean(name, _public(module))}")


def _resolve(
    module: _Module, node: ast.expr, seen: frozenset[tuple[str, str]] = frozenset()
) -> _Module | tuple[_Module, _Def] | None:
    """What an expression such as ``nn.Module`` or ``Base[int]`` names; None for a builtin."""
    match node:
        case ast.Subscript():
            return _resolve(module, node.value, seen)
        case ast.Name():
            if node.id not in module.bound and hasattr(builtins, node.id):
                return None
            return _lookup(module, node.id, seen)
        case ast.Attribute():
            owner = _resolve(module, node.value, seen)
            if isinstance(owner, _Module):
                return _lookup(owner, node.attr, seen)
    raise Unreadable(f"{module.name}: {ast.unparse(node)}")


def _dotted(module: _Module, node: ast.expr) -> str:
    """``torch.nn.Module`` for ``nn.Module`` below ``from torch import nn``; no file is opened."""
    match node:
        case ast.Subscript():
            return _dotted(module, node.value)
        case ast.Attribute():
            return f"{_dotted(module, node.value)}.{node.attr}"
        case ast.Name():
            match module.bound.get(node.id):
                case ast.ImportFrom() as statement:
                    return f"{statement.module}.{statement.names[0].name}"
                case ast.Import() as statement:
                    return statement.names[0].name
            return node.id
    return ""


# signatures


def _define(module: _Module, node: _Def) -> Definition:
    path, doc = f"{module.name}.{node.name}", ast.get_docstring(node) or ""
    if not isinstance(node, ast.ClassDef):
        arguments, is_open = _arguments(node.args)
        return Definition(path, arguments, is_open, doc)
    abstract = _is_abstract(module, node)
    arguments, is_open = _constructor(module, node) or ((), False)
    return Definition(path, arguments, is_open, doc, abstract)


def _method(module: _Module, node: ast.ClassDef, name: str) -> Definition:
    found = _search(module, node, name)
    if found is None:
        raise BadPath(f"{module.name}.{node.name} has no method {name!r}.{did_you_mean(name, _members(node))}")
    owner, holder, method = found
    arguments, is_open = _arguments(method.args, skip_first=not _decorated(method, "staticmethod"))
    return Definition(f"{owner.name}.{holder.name}.{name}", arguments, is_open, ast.get_docstring(method) or "")


def _bases(module: _Module, node: ast.ClassDef) -> Iterator[tuple[_Module, ast.ClassDef]]:
    for base in node.bases:
        if _dotted(module, base) in _TAKES_NOTHING:
            continue
        found = _resolve(module, base)
        if found is None:
            if ast.unparse(base) != "object":
                raise Unreadable(f"{module.name}.{node.name} is built on {ast.unparse(base)}")
            continue
        if isinstance(found, _Module) or not isinstance(found[1], ast.ClassDef):
            raise Unreadable(f"{module.name}.{node.name} is built on {ast.unparse(base)}")
        yield found[0], found[1]


def _members(node: ast.ClassDef) -> list[str]:
    return [item.name for item in node.body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]


def _own(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    own = [
        item
        for item in _flat(node.body)
        if isinstance(item, ast.FunctionDef) and item.name == name and not _decorated(item, "overload")
    ]
    return own[-1] if own else None


def _search(module: _Module, node: ast.ClassDef, name: str) -> tuple[_Module, ast.ClassDef, ast.FunctionDef] | None:
    """A method in a class or its bases, depth first."""
    own = _own(node, name)
    if own is not None:
        return module, node, own
    for base in _bases(module, node):
        found = _search(*base, name)
        if found is not None:
            return found
    return None


def _constructor(module: _Module, node: ast.ClassDef) -> tuple[tuple[Argument, ...], bool] | None:
    own = _own(node, "__init__") or _own(node, "__new__")
    if own is not None:
        return _arguments(own.args, skip_first=True)
    if _decorated(node, "dataclass"):
        return tuple(_fields(module, node).values()), False
    for base in _bases(module, node):
        found = _constructor(*base)
        if found is not None:
            return found
    return None


def _fields(module: _Module, node: ast.ClassDef) -> dict[str, Argument]:
    """Constructor arguments of a dataclass, those of its bases first."""
    fields: dict[str, Argument] = {}
    for base in reversed(list(_bases(module, node))):
        if _decorated(base[1], "dataclass"):
            fields |= _fields(*base)
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = ast.unparse(item.annotation)
        if "ClassVar" in annotation or annotation.endswith("KW_ONLY"):
            continue
        default = None if item.value is None else ast.unparse(item.value)
        if isinstance(item.value, ast.Call) and ast.unparse(item.value.func).endswith("field"):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in item.value.keywords}
            if options.get("init") == "False":
                continue
            default = options.get(
                "default", f"{options['default_factory']}()" if "default_factory" in options else None
            )
        fields[item.target.id] = Argument(item.target.id, annotation, default)
    return fields


def _arguments(args: ast.arguments, skip_first: bool = False) -> tuple[tuple[Argument, ...], bool]:
    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    pairs = list(zip(plain, defaults, strict=True))[skip_first:] + list(
        zip(args.kwonlyargs, args.kw_defaults, strict=True)
    )
    found = tuple(
        Argument(
            arg.arg,
            ast.unparse(arg.annotation) if arg.annotation else "",
            None if default is None else ast.unparse(default),
        )
        for arg, default in pairs
        if arg not in args.posonlyargs
    )
    return found, args.kwarg is not None


def _decorated(node: _Def, name: str) -> bool:
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(called).split(".")[-1] == name:
            return True
    return False


def _is_abstract(module: _Module, node: ast.ClassDef) -> bool:
    """A class that names ``ABC`` or ``Protocol`` among its own bases, or declares abstract methods itself."""
    if any(_dotted(module, base) in ("abc.ABC", "typing.Protocol") for base in node.bases):
        return True
    return any(isinstance(item, ast.FunctionDef) and _decorated(item, "abstractmethod") for item in node.body)
