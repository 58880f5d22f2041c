"""The training data of SLAM-Omni become dialogues folders."""

from __future__ import annotations

from fac_lightning.data.importers.hugging_face import HuggingFaceImport

__all__ = ["SlamOmniImport"]


class SlamOmniImport(HuggingFaceImport):
    """Job: SLAM-Omni's parquet or JSON lines become a dialogues folder, replies as CosyVoice's codes.

    A row has the question's sound (``question_audio``, or the path ``source_wav``), the answer's text and its codes
    (``answer_cosyvoice_speech_token``, or ``target_token``), the second name of each in the JSON lines of SLAM-LLM.
    From the second round on, the question's text holds the conversation so far: where the rows of the earlier rounds
    are there too their sound is taken, else the conversation's text.

    The codes are those of CosyVoice-300M's tokenizer, 4096 of them at 50 Hz; ``columns`` says otherwise
    (``codes_tokenizer``, ``codes_frame_rate``). Arguments are those of ``HuggingFaceImport``.
    """

    def map_names(self) -> list[str]:
        """The two ways of writing it."""
        return ["slam-omni", "slam-omni-jsonl"]
