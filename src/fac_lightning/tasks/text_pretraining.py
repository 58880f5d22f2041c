"""Training the text LLM itself, before it hears or speaks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from fac_lightning.backbones.base import Backbone
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat
from fac_lightning.tasks.base import PackedLineTask
from fac_lightning.text_tokenizer import check_rows
from fac_lightning.types import SpeechLMOutput, SpeechTextBatch

__all__ = ["TextPretraining"]


class TextPretraining(PackedLineTask):
    """Learn to answer in text from packed written dialogues (mode T2T).

    When training ends the LLM is saved as a transformers folder ``<run folder>/llm`` with its text tokenizer, so that
    ``HFBackbone(name="<run folder>/llm")`` and any other program can load it. That needs a backbone with a method
    ``save_pretrained(folder)``.

    Args:
        model: The text LLM.
        lr: Learning rate after the warm-up.
        min_lr: Learning rate at ``trainer.max_steps``.
        warmup_steps: Optimizer steps of linear warm-up; below 1, that part of ``trainer.max_steps``.
        weight_decay: Of AdamW, on matrices only.
        betas: Of AdamW.
        freeze: Modules or parameter patterns that are not trained.
        lr_factors: Modules or parameter patterns -> factor on the learning rate.
        save_llm: Save the transformers folder.
        auxiliary_weight: Weight of the loss that a backbone adds by itself (``SpeechLM.auxiliary_losses``).
    """

    model: Backbone

    def __init__(
        self,
        model: Backbone,
        lr: float = 1e-3,
        min_lr: float = 1e-4,
        warmup_steps: float = 100,
        weight_decay: float = 0.01,
        betas: Sequence[float] = (0.9, 0.95),
        freeze: Sequence[str] | None = None,
        lr_factors: Mapping[str, float] | None = None,
        save_llm: bool = True,
        auxiliary_weight: float = 1.0,
    ) -> None:
        super().__init__(
            model, lr, min_lr, warmup_steps, weight_decay, betas, 1.0, 0.0, freeze, lr_factors, auxiliary_weight
        )
        if save_llm and not hasattr(model, "save_pretrained"):
            raise ValueError(
                f"{type(model).__name__} has no save_pretrained(folder), so the LLM cannot be saved as a folder; "
                "give it one, or set save_llm=False and take model.safetensors instead"
            )
        self.save_llm = save_llm

    def forward(self, batch: SpeechTextBatch) -> SpeechLMOutput:
        """Log-probabilities of all text labels of a packed line."""
        output: SpeechLMOutput = SpeechLM(self.model)(batch)  # no slot but the backbone: labelled rows, chunked loss
        return output

    def on_fit_start(self) -> None:
        """Refuse a text tokenizer with more ids than the LLM has rows; a bare LLM tells its data no sizes."""
        data: Any = getattr(self.trainer, "datamodule", None)
        chat = getattr(data, "chat", None)
        if isinstance(chat, ChatFormat):
            check_rows(chat.tokenizer, self.model.vocab_size)

    def on_fit_end(self) -> None:
        """Save the LLM folder, whole or not at all."""
        if not self.save_llm or not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.default_root_dir) / "llm"
        draft = folder.with_name(".llm.part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        self.model.save_pretrained(draft)  # type: ignore[operator]
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "save_text_tokenizer"):
            data.save_text_tokenizer(draft)
        else:
            rank_zero_info(f"{folder} has no text tokenizer: the data has no save_text_tokenizer(folder)")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
