"""One combination of parts, tried: trained, resumed, talked to, moved, exported and loaded again."""

from __future__ import annotations

import csv
import math
import shutil
import time
from pathlib import Path
from typing import Any

from fac_lightning.cli.build import LoadedRun, build_model, load_run
from fac_lightning.cli.fit import fit
from fac_lightning.config import Recipe, RecipeError, UserError, instantiate
from fac_lightning.testing.codec_weights import make_s3_weights
from fac_lightning.testing.covering import Combination
from fac_lightning.testing.matrix import PartCatalogue, TrialResult

__all__ = ["MatrixTrials"]

POSITIONS = 3  # of a reply


class MatrixTrials:
    """Tries combinations of a catalogue in a folder; what several of them need is made once.

    Args:
        catalogue: The parts.
        folder: For dialogues and run folders; those of combinations that work are removed again.
    """

    def __init__(self, catalogue: PartCatalogue, folder: Path) -> None:
        self.catalogue, self.folder = catalogue, folder
        self._built: dict[tuple[str, str], Any] = {}

    def prepare(self) -> None:
        """Make the dialogue that all combinations learn, its text tokenizer, and files that parts read."""
        from fac_lightning.data import TextTokenizerTraining
        from fac_lightning.testing.dialogues import make_dialogues

        if not (self.folder / "tokenizer").exists():
            make_dialogues(self.folder / "words", 16, spoken=False)
            make_dialogues(self.folder / "train", 1, seconds=(0.4, 0.9))
            TextTokenizerTraining([str(self.folder / "words")], 360, str(self.folder / "tokenizer")).run()

    def missing(self) -> dict[str, str]:
        """Parts that lack a package here, and what they say; to be called after :meth:`prepare`."""
        found = {}
        for slot, parts in self.catalogue.slots.items():
            for name in parts:
                try:
                    if name == "S3Tokenizer" and not (self.folder / "s3.pt").exists():
                        make_s3_weights(self.folder / "s3.pt")
                    if slot in ("tokenizer", "encoder", "backbone"):  # the others need nothing but torch
                        self._part(slot, name)
                except (ImportError, UserError) as error:
                    if not isinstance(error, ImportError) and not isinstance(error.__cause__, ImportError):
                        raise
                    found[name] = _reason(error)
        self.catalogue = self.catalogue.without(found)
        return found

    def recipe(self, chosen: Combination, run: Path) -> dict[str, Any]:
        """The recipe of a combination."""
        data = {"train": str(self.folder / "train"), "text_tokenizer": str(self.folder / "tokenizer")}
        extra = {"data": data, "trainer": {"default_root_dir": str(run)}}
        return self.catalogue.compose(chosen, self.sizes(chosen), extra)

    def sizes(self, chosen: Combination) -> dict[str, Any]:
        """What tokenizer and encoder say of rates and codes, and the groups that give about the wanted rate."""
        from fac_lightning.models.agreement import matching_groups

        tokenizer, encoder = (self._part(slot, chosen[slot]) for slot in ("tokenizer", "encoder"))
        wanted = self.catalogue.positions_per_second
        frames, codes = matching_groups(encoder.frame_rate, tokenizer.frame_rate, wanted)
        return {
            "folder": str(self.folder),
            "codebook_size": tokenizer.codebook_size,
            "num_codebooks": tokenizer.num_codebooks,
            "group_size": codes,
            "encoder_dim": encoder.dim,
            "feature_group_size": frames,
        }

    def refusal(self, chosen: Combination) -> str | None:
        """What a part says that cannot go with the others; None where the model can be built."""
        try:
            build_model(self.recipe(chosen, self.folder)["model"])
        except UserError as error:
            return _reason(error)
        return None

    def run(self, chosen: Combination, number: int) -> TrialResult:
        """Try one combination; what fails is told in the result."""
        folder, started = self.folder / f"run-{number}", time.perf_counter()
        shutil.rmtree(folder, ignore_errors=True)
        losses: list[float] = []
        modes: list[str] = []
        try:
            refused = self.refusal(chosen)
            if refused is not None:
                return TrialResult(chosen, "refused", refused)
            recipe = Recipe(f"run-{number}", self.recipe(chosen, folder))
            fit(recipe)
            losses += _logged(folder, "loss")
            for name in ("loss", "text_loss", "speech_loss"):
                seen = _logged(folder, name)
                _check(len(seen) == 3 and all(map(math.isfinite, seen)), f"3 finite values of {name}, got {seen}")
                _check(seen[-1] < seen[0], f"{name} to fall, got {seen}")
            _check_resumed(recipe, folder)
            run = self._load(folder)
            replies = self._talk(run, modes)
            moved = folder.rename(folder.with_name(f"moved-{number}"))
            again = self._talk(self._load(moved), [])
            _check(replies == again, "the same answers from the folder when it was moved")
            _check_export(run.model.backbone, moved / "llm")
        except Exception as error:  # the result tells what it was
            return TrialResult(chosen, "red", _reason(error), time.perf_counter() - started, losses, modes)
        shutil.rmtree(moved)
        return TrialResult(chosen, "green", "", time.perf_counter() - started, losses, modes)

    def _part(self, slot: str, name: str) -> Any:
        if (slot, name) not in self._built:
            node = self.catalogue.resolve(slot, name, {"folder": str(self.folder)})
            built = instantiate(node, slot)
            if slot == "backbone":  # only its sizes are asked for
                return built
            self._built[slot, name] = built
        return self._built[slot, name]

    def _load(self, run: Path) -> LoadedRun:
        """A run's model; whoever adds a part of theirs to the catalogue trusts it."""
        packages = {target.partition(".")[0] for target in self.catalogue.targets()} - {"fac_lightning"}
        return load_run(run, [f"{package}." for package in sorted(packages)])

    def _talk(self, run: LoadedRun, modes: list[str]) -> list[Any]:
        """Answers of every mode, as lists; ``modes`` grows while it goes."""
        import numpy as np
        import torch

        from fac_lightning.generation import Decoding, Generator
        from fac_lightning.prompts import MODES, ChatFormat

        rate, decoding = run.model.geometry.sample_rate, Decoding(max_positions=POSITIONS)
        generator = Generator(
            run.model, ChatFormat(run.text_tokenizer), tokenizer=run.tokenizer,
            system_prompts=run.data.get("system_prompts"), reply=run.reply,
        )  # fmt: skip
        tone = np.sin(np.arange(rate // 2) * 0.1).astype(np.float32) / 4
        found = []
        for name, mode in MODES.items():
            session = generator.session(mode=name, decoding=decoding)
            reply = session.send(text=None if mode.hears else "What follows red?", audio=tone if mode.hears else None)
            _check(isinstance(reply.text, str), f"text in mode {name}")
            if mode.speaks:
                assert reply.codes is not None
                codes, shape = reply.codes, (run.tokenizer.num_codebooks,)
                _check(codes.shape[1:] == shape, f"codes (T, {shape[0]}) in mode {name}, got {tuple(codes.shape)}")
                inside = not codes.numel() or bool(((codes >= 0) & (codes < run.tokenizer.codebook_size)).all())
                _check(inside, f"codes of the tokenizer in mode {name}")
                audio = reply.audio
                _check(audio is not None and bool(torch.isfinite(audio).all()), f"a finite waveform in mode {name}")
            found.append((reply.text, None if reply.codes is None else reply.codes.tolist()))
            modes.append(name)
        return found


def _check_resumed(recipe: Recipe, folder: Path) -> None:
    """Going on from the second step must give the weights of going through."""
    from safetensors.torch import load_file

    start = next(file for file in folder.rglob("step=2*.ckpt"))
    resumed = folder / "resumed"
    trainer = {**recipe.tree["trainer"], "default_root_dir": str(resumed)}
    fit(Recipe(recipe.name, {**recipe.tree, "trainer": trainer, "ckpt_path": str(start)}))
    one, two = (load_file(run / "model.safetensors") for run in (folder, resumed))
    _check(one.keys() == two.keys(), "the same tensors when it goes on from its second step")
    other = [name for name in one if not one[name].equal(two[name])]
    _check(not other, f"the same weights when it goes on from its second step; {', '.join(other[:3])} differ")


def _check_export(backbone: Any, folder: Path) -> None:
    """The LLM as a plain transformers folder must compute the same."""
    import torch

    from fac_lightning.backbones import HFBackbone

    backbone.save_pretrained(folder)
    other = HFBackbone(name=str(folder)).eval()
    ids, lengths = torch.arange(1, 7), torch.tensor([6])
    with torch.no_grad():
        want = backbone(backbone.embed(ids), torch.arange(6), lengths)
        got = other(other.embed(ids), torch.arange(6), lengths)
    gap = float((want - got).abs().max())
    _check(gap < 1e-4, f"the exported LLM to compute the same; it differs by {gap:.1e}")


def _logged(folder: Path, name: str) -> list[float]:
    """Values of every step."""
    with (folder / "logs" / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[f"train/{name}"]) for row in csv.DictReader(file) if row.get(f"train/{name}")]


def _check(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(f"expected {promise}")


def _reason(error: BaseException) -> str:
    if isinstance(error, RecipeError):
        return "; ".join(str(problem) for problem in error.problems)
    line = (str(error).strip().splitlines() or [""])[0]
    return line if isinstance(error, UserError | AssertionError) else f"{type(error).__name__}: {line}"
