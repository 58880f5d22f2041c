"""Dialogues as Fun-Audio-Chat's training JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np

from fac_lightning.data.audio import to_int16
from fac_lightning.data.codes import CodeStore
from fac_lightning.data.dialogue import Turn, dialogue_of_cut, read_cuts
from fac_lightning.data.importers.fun_audio_json import SAMPLE_RATE, code_text, pad_count
from fac_lightning.data.manifest import manifest_path
from fac_lightning.prompts import AUDIO_PAD, AUDIO_TEMPLATE, S2M_PROMPT, S2T_PROMPT
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["export_fun_audio_chat_json"]


def export_fun_audio_chat_json(
    folder: str | Path, out: str | Path, tokenizer: SpeechTokenizer | None = None, delay_tokens: int = 10
) -> int:
    """Write a dialogues folder as Fun-Audio-Chat's training JSON lines; the number of lines.

    The user's waveforms go to ``<name of out>_audio/`` beside it, 16 kHz, one file a turn, named by absolute path, for
    the released trainer starts anywhere. What turns and dialogues hold in ``custom`` has no place there.

    Args:
        folder: Dialogues folder or manifest.
        out: The JSON-lines file; replaced when it is there.
        tokenizer: Makes the codes of replies that are recorded; None where all come with codes.
        delay_tokens: ``<|audio_bos|>`` before the codes.

    Raises:
        ValueError: A reply is recorded and there is no tokenizer, or codes have several codebooks.
    """
    out = Path(out)
    sounds = out.parent / f"{out.stem}_audio"
    cuts = list(read_cuts(folder))
    made = CodeStore(manifest_path(folder).parent, tokenizer).complete(cuts) if tokenizer is not None else {}
    sounds.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for cut in cuts:
            dialogue = dialogue_of_cut(cut, sample_rate=SAMPLE_RATE)
            messages: list[dict[str, str]] = []
            entries: list[str] = []
            for i, turn in enumerate(dialogue.turns):
                where = f"dialogue {dialogue.id!r}, turn {i}"
                codes = turn.codes.codes if turn.codes is not None else made.get((cut.id, i))
                spoken = turn.audio is not None or codes is not None
                messages.append({"role": turn.role, "content": AUDIO_TEMPLATE if spoken else turn.text})
                if not spoken:
                    continue
                if turn.role == "assistant":
                    token = code_text(_one_book(codes, where), delay_tokens)
                    entry = {"path": "", "token": token, "text": turn.text}
                else:
                    entry = _write_user(turn, sounds / f"{quote(dialogue.id, safe='')}-{i}.wav")
                entries.append(json.dumps(entry, ensure_ascii=False))
            said = any(m["role"] == "assistant" and m["content"] == AUDIO_TEMPLATE for m in messages)
            system = dialogue.system if dialogue.system is not None else S2M_PROMPT if said else S2T_PROMPT
            record = {"id": dialogue.id, "system": system, "messages": messages, "audio": entries}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(part, out)
    return len(cuts)


def _one_book(codes: np.ndarray | None, where: str) -> np.ndarray:
    """Codes ``(T,)`` of a reply."""
    if codes is None:
        raise ValueError(f"{where} is recorded, and the format wants its codes: give the tokenizer that makes them")
    if codes.shape[1] != 1:
        raise ValueError(f"{where} has {codes.shape[1]} codebooks; the format has room for one")
    return codes[:, 0]


def _write_user(turn: Turn, path: Path) -> dict[str, str]:
    import soundfile

    assert turn.audio is not None
    # As integers: libsndfile scales floats by 32767 on the way out and by 32768 on the way in.
    samples = to_int16(turn.audio)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    token = AUDIO_PAD * pad_count(len(turn.audio) / SAMPLE_RATE)
    return {"path": str(path.resolve()), "token": token, "text": "", "transcript": turn.text}
