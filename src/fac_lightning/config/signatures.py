"""Read what a dotted path takes from source text, so that a recipe is checked before anything heavy is imported.

``find("torch.optim.AdamW")`` parses ``torch/optim/__init__.py``, follows ``from torch.optim.adamw import AdamW`` and
gives the arguments of the constructor as they are written.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fac_lightning.config.errors import did_you_mean
from fac_lightning.config.source import (
    BadPath,
    Def,
    Module,
    Unreadable,
    decorated,
    dotted,
    flat,
    lookup,
    module_file,
    no_package,
    public,
    read_module,
    resolve,
)

__all__ = ["Argument", "Definition", "define", "find", "lineage", "locate"]

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


def find(path: str) -> Definition:
    """Definition of a dotted path, read from source alone.

    Raises:
        BadPath: It leads nowhere; the text says why and suggests.
        Unreadable: Source does not tell; ``define`` imports then.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise BadPath(f"{path!r} is not a dotted path to a class or function, such as 'torch.optim.AdamW'.")
    count = max((n for n in range(1, len(parts)) if module_file(".".join(parts[:n])) is not None), default=0)
    if count == 0:
        raise BadPath(no_package(parts[0]))
    here: Module | tuple[Module, Def] = read_module(".".join(parts[:count]))
    for i in range(count, len(parts)):
        if isinstance(here, Module):
            here = lookup(here, parts[i])
        elif isinstance(here[1], ast.ClassDef) and i == len(parts) - 1:
            return _method(here[0], here[1], parts[i])
        else:
            raise BadPath(f"{'.'.join(parts[:i])} is a function and has no {parts[i]!r}.")
    if isinstance(here, Module):
        names = ", ".join(public(here)[:8])
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
        raise BadPath(no_package(parts[0])) from None
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


def lineage(path: str) -> set[str]:
    """Bare names of a class, of all classes above it, and of its public methods, as far as source tells.

    Args:
        path: Where the class is written (``Definition.path``).
    """
    module_name, _, name = path.rpartition(".")
    found = lookup(read_module(module_name), name)
    return set() if isinstance(found, Module) or not isinstance(found[1], ast.ClassDef) else set(_lineage(*found))


def _lineage(module: Module, node: Def) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        yield from (node.name, *_members(node), *(dotted(module, base).split(".")[-1] for base in node.bases))
        try:
            for above in _bases(module, node):
                yield from _lineage(*above)
        except (BadPath, Unreadable):
            return


def _define(module: Module, node: Def) -> Definition:
    path, doc = f"{module.name}.{node.name}", ast.get_docstring(node) or ""
    if not isinstance(node, ast.ClassDef):
        arguments, is_open = _arguments(node.args)
        return Definition(path, arguments, is_open, doc)
    abstract = _is_abstract(module, node)
    arguments, is_open = _constructor(module, node) or ((), False)
    return Definition(path, arguments, is_open, doc, abstract)


def _method(module: Module, node: ast.ClassDef, name: str) -> Definition:
    found = _search(module, node, name)
    if found is None:
        raise BadPath(f"{module.name}.{node.name} has no method {name!r}.{did_you_mean(name, _members(node))}")
    owner, holder, method = found
    arguments, is_open = _arguments(method.args, skip_first=not decorated(method, "staticmethod"))
    return Definition(f"{owner.name}.{holder.name}.{name}", arguments, is_open, ast.get_docstring(method) or "")


def _bases(module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    for base in node.bases:
        if dotted(module, base) in _TAKES_NOTHING:
            continue
        found = resolve(module, base)
        if found is None:
            if ast.unparse(base) != "object":
                raise Unreadable(f"{module.name}.{node.name} is built on {ast.unparse(base)}")
            continue
        if isinstance(found, Module) or not isinstance(found[1], ast.ClassDef):
            raise Unreadable(f"{module.name}.{node.name} is built on {ast.unparse(base)}")
        yield found[0], found[1]


def _members(node: ast.ClassDef) -> list[str]:
    return [item.name for item in node.body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]


def _own(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    own = [
        item
        for item in flat(node.body)
        if isinstance(item, ast.FunctionDef) and item.name == name and not decorated(item, "overload")
    ]
    return own[-1] if own else None


def _search(module: Module, node: ast.ClassDef, name: str) -> tuple[Module, ast.ClassDef, ast.FunctionDef] | None:
    """A method in a class or its bases, depth first."""
    own = _own(node, name)
    if own is not None:
        return module, node, own
    for base in _bases(module, node):
        found = _search(*base, name)
        if found is not None:
            return found
    return None


def _constructor(module: Module, node: ast.ClassDef) -> tuple[tuple[Argument, ...], bool] | None:
    own = _own(node, "__init__") or _own(node, "__new__")
    if own is not None:
        return _arguments(own.args, skip_first=True)
    if decorated(node, "dataclass"):
        return tuple(_fields(module, node).values()), False
    for base in _bases(module, node):
        found = _constructor(*base)
        if found is not None:
            return found
    return None


def _fields(module: Module, node: ast.ClassDef) -> dict[str, Argument]:
    """Constructor arguments of a dataclass, those of its bases first."""
    fields: dict[str, Argument] = {}
    for base in reversed(list(_bases(module, node))):
        if decorated(base[1], "dataclass"):
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


def _is_abstract(module: Module, node: ast.ClassDef) -> bool:
    """A class that names ``ABC`` or ``Protocol`` among its own bases, or declares abstract methods itself."""
    if any(dotted(module, base) in ("abc.ABC", "typing.Protocol") for base in node.bases):
        return True
    return any(isinstance(item, ast.FunctionDef) and decorated(item, "abstractmethod") for item in node.body)
