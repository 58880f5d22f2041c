"""Merging models that lie on disk, a piece of each at a time in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from fac_lightning import __version__
from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.execute import make_tensor
from fac_lightning.merging.plan import GROWING, MergePlan, plan_merge
from fac_lightning.merging.report import MergeReport, Sums, TensorReport
from fac_lightning.merging.source import FileSource, TensorSpec
from fac_lightning.merging.writer import StreamedWriter

__all__ = ["REPORT_FILE", "merge_files"]

REPORT_FILE = "merge.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
#: What lies beside the weights of a model folder and is needed to use them.
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")


def merge_files(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    out: str | Path,
    method: MergeMethod,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    base_prefix: str | None = None,
    growing: Sequence[str] = GROWING,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergeReport:
    """Merge safetensors files into a folder that is used like that of the tuned model.

    Memory is one block of each model where the method is elementwise, else one tensor of each. What happens to a
    tensor:

    - base and tuned model have it: merged;
    - only the base has it: copied from there, unless it repeats a tensor that the tuned model ties;
    - only tuned models have it (speech encoder, adapters, head): copied, or their mean where several have it;
    - it has more rows in the tuned model (a vocabulary that grew): common rows merged, the others copied from there;
    - it holds integers or booleans, or is not asked for: copied from the tuned model.

    The output has the shards of the first tuned model. It is written beside ``out`` and renamed when it is complete.

    Args:
        base: Model before training: a safetensors file, a folder of transformers, or a run folder. It may be the text
            LLM alone, whose tensors stand behind a prefix in the tuned model.
        tuned: Model after training, or several; names, shapes and types of the output are those of the first.
        out: Folder to write: weights, the report ``merge.json``, and what stands beside the weights of the first tuned
            model (recipe and text tokenizer of a run folder, configuration and tokenizer of a transformers folder).
        method: What becomes of the tensors that both sides have.
        include: Patterns of tensors to merge; none means all. The others are copied from the tuned model.
        exclude: Patterns of tensors not to merge.
        base_prefix: Stands before the base's names in the tuned model; None finds it.
        growing: Patterns of tensors that may have more rows in the tuned model: the vocabulary.
        progress: Told the bytes written and the bytes of the whole output.

    Raises:
        FileNotFoundError: There are no weights.
        CheckpointError: Weights that are damaged, quantised or do not fit each other; the text names the tensor.
        ValueError: A pattern matches nothing, ``out`` holds something else, or the method cannot merge so many models.
    """
    sources = [tuned] if isinstance(tuned, str | Path) else list(tuned)
    out = Path(out)
    settings = {
        "base": str(base),
        "tuned": [str(path) for path in sources],
        "method": method.describe(),
        "include": list(include),
        "exclude": list(exclude),
        "base_prefix": base_prefix,
        "growing": list(growing),
    }
    _refuse_other(out, settings)
    with ExitStack() as stack:
        if method.elementwise:
            stack.enter_context(_one_thread())
        before = stack.enter_context(FileSource(base))
        after = [stack.enter_context(FileSource(path)) for path in sources]
        plan = plan_merge(before, after, method, include, exclude, base_prefix, growing)
        draft = out.with_name(f".{out.name}.part")
        shutil.rmtree(draft, ignore_errors=True)  # of a merge that was killed
        draft.mkdir(parents=True)
        try:
            report = _write(draft, settings, plan, before, after, method, progress)
            _copy_companions(after[0], draft, settings)
            report.save(draft / REPORT_FILE)
            _put_in_place(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return report


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small blocks: waking other threads for each costs more processor time than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write(
    folder: Path,
    settings: dict[str, Any],
    plan: MergePlan,
    base: FileSource,
    tuned: Sequence[FileSource],
    method: MergeMethod,
    progress: Callable[[int, int], None],
) -> MergeReport:
    shards = _shards(plan, tuned[0])
    total = sum(planned.spec.nbytes for planned in plan.tensors.values())
    done, tensors, sums = 0, {}, {}
    for file, names in shards.items():
        specs = {name: plan.tensors[name].spec for name in names}
        with StreamedWriter(folder / file, specs, _metadata(settings, specs, tuned[0])) as writer:
            for name in writer.order:
                tensors[name], added = make_tensor(plan.tensors[name], base, tuned, method, writer.write)
                if added is not None:
                    sums[name] = added
                done += specs[name].nbytes
                progress(done, total)
    if len(shards) > 1:
        owners = {name: file for file, names in shards.items() for name in names}
        parameters = sum(planned.spec.numel for planned in plan.tensors.values())
        index = {"metadata": {"total_size": total, "total_parameters": parameters}, "weight_map": owners}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    ordered: tuple[TensorReport, ...] = tuple(tensors[name] for name in plan.tensors)
    found: dict[str, Sums] = sums
    return MergeReport(settings, ordered, plan.notes, found)


def _shards(plan: MergePlan, tuned: FileSource) -> dict[str, list[str]]:
    """File name -> its tensors: those of the tuned model, and what it lacks in the last."""
    shards = tuned.shards()
    known = {name for names in shards.values() for name in names}
    shards[list(shards)[-1]] += [name for name in plan.tensors if name not in known]
    return shards if len(shards) > 1 else {WEIGHTS_FILE: next(iter(shards.values()))}


def _metadata(settings: Mapping[str, Any], specs: Mapping[str, TensorSpec], tuned: FileSource) -> dict[str, str]:
    aliases = {other: name for other, name in tuned.aliases.items() if name in specs and other not in specs}
    return {**aliases, "format": "pt", "fac_lightning": __version__, "merge": json.dumps(settings)}


def _refuse_other(out: Path, settings: Mapping[str, Any]) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    report = out / REPORT_FILE
    if report.is_file():
        if json.loads(report.read_text(encoding="utf-8")).get("settings") == json.loads(json.dumps(settings)):
            return  # made by these very settings: made again
        raise ValueError(f"{out} holds another merge, which is not overwritten; take another folder, or remove it")
    raise ValueError(f"{out} exists and holds no merge; take a folder that does not exist")


def _put_in_place(draft: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    draft.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _copy_companions(tuned: FileSource, folder: Path, settings: Mapping[str, Any]) -> None:
    """What makes the output a run folder or a transformers folder, as the tuned model's is."""
    if not tuned.path.is_dir():
        return
    recipe = tuned.folder / "recipe.yaml"
    if recipe.is_file():
        (folder / recipe.name).write_text(
            f"{_origin(settings)}\n{recipe.read_text(encoding='utf-8')}", encoding="utf-8"
        )
        if (tuned.folder / "text_tokenizer").is_dir():
            shutil.copytree(tuned.folder / "text_tokenizer", folder / "text_tokenizer")
        return
    for file in sorted(tuned.folder.iterdir()):
        weights = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _COMPANIONS and not weights and file.name != REPORT_FILE:
            shutil.copy(file, folder / file.name)


def _origin(settings: Mapping[str, Any]) -> str:
    """A comment line: where these weights come from; below it stands the recipe of the tuned run."""
    method = settings["method"]["class"].rpartition(".")[2]
    tuned = " + ".join(settings["tuned"])
    made = f"{method} of {settings['base']} and {tuned}"
    return f"# weights merged by fac_lightning {__version__}: {made}; see {REPORT_FILE}"
