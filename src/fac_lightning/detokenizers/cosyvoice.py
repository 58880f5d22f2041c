"""CosyVoice 3 as a detokenizer: flow matching and a vocoder, called in an installed CosyVoice."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.detokenizers.base import SpeechDetokenizer
from fac_lightning.types import Waveforms
from fac_lightning.weights import CheckpointError

__all__ = ["CosyVoice3Detokenizer", "CosyVoiceState"]

FRAME_RATE = 25  # Hz, of the codes
MELS_PER_FRAME = 2
NUM_MELS = 80
# in one piece (the released token2wav)
PIECE = 750  # frames spoken at once
SHORTEST = 50  # a last piece below this is joined with the one before it, and both are halved
# in chunks (the released web server)
HOP = 15  # frames spoken by one call
LOOK_AHEAD = 3  # frames that a call sees and does not speak
WINDOW = 200  # frames dropped from the front once as many are spoken
VOCODER_WINDOW = 500  # dropped frames after which the vocoder's past is cut
VOCODER_CONTEXT = 50  # mel frames that are left of it


@dataclass
class CosyVoiceState:
    """One utterance on its way."""

    frames: Tensor  # (N,) int32 on CPU, the window that the flow sees
    offset: int = 0  # frames of the window already spoken
    dropped: int = 0  # frames that left the window since the vocoder's past was cut
    vocoder: dict[str, Any] | None = None  # what CosyVoice keeps of an utterance: mels and samples already given
    given: int = 0  # frames taken in
    spoken: int = 0  # samples given out
    ended: bool = False
    key: str = field(default_factory=lambda: str(uuid.uuid4()))  # the utterance's name inside CosyVoice


class CosyVoice3Detokenizer(SpeechDetokenizer):
    """Speak S3 codes in a fixed voice, as the released Fun-Audio-Chat does: 24 kHz.

    It calls an installed CosyVoice (https://github.com/FunAudioLLM/CosyVoice, not on PyPI), on the device that
    CosyVoice chooses. ``decode`` cuts utterances into 30 s; ``stream`` speaks 15 frames once 3 more are there. The
    calls are those of the released scripts, with two repairs: the last frames of a stream are spoken however few they
    are, and when the vocoder's past is cut after 500 frames, samples that it still owed are not lost.

    Args:
        model: Folder of ``Fun-CosyVoice3-0.5B-2512``, or the ModelScope id from which CosyVoice downloads it.
        speakers: File of voices; ``None`` takes ``new_spk2info.pt`` of the model's folder. Fun-Audio-Chat's own file of
            that name lies in ``utils`` of its repository.
        voice: Name of a voice in ``speakers``.
        fp16: Run in half precision.

    Raises:
        ImportError: If CosyVoice cannot be imported.
        CheckpointError: If the voice is not there.
    """

    num_codebooks = 1
    codebook_size = 6561
    codes_name = "speech_tokenizer_v3_25hz"
    embedding: Tensor

    def __init__(
        self,
        model: str = "pretrained_models/Fun-CosyVoice3-0.5B-2512",
        speakers: str | None = None,
        voice: str = "中文女",
        fp16: bool = False,
    ) -> None:
        super().__init__()
        embedding = _read_voice(Path(speakers) if speakers else Path(model) / "new_spk2info.pt", voice)
        self.register_buffer("embedding", embedding, persistent=False)
        self.cosyvoice: Any = _build(model, fp16)
        self.cosyvoice.model.flow.decoder.estimator.static_chunk_size = MELS_PER_FRAME * PIECE
        self.sample_rate = int(self.cosyvoice.sample_rate)
        self.hop_length = self.sample_rate // FRAME_RATE

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms ``(B, T * hop_length)`` of codes ``(B, T, 1)``, one row after another; ``lengths`` in frames.

        Raises:
            ValueError: A code is not one of ``codebook_size``.
        """
        if lengths is None:
            lengths = torch.full((codes.shape[0],), codes.shape[1], device=codes.device)
        self.check_codes(codes, lengths)
        audio = torch.zeros(codes.shape[0], codes.shape[1] * self.hop_length, device=codes.device)
        for row, length in enumerate(lengths.tolist()):
            frames = codes[row, :length, 0].to("cpu", torch.int32)
            for start, stop in pairwise(_cuts(length)):
                state = CosyVoiceState(frames[start:stop])
                speech = self._fit(self._call(state, frames[start:stop], final=True), (stop - start) * self.hop_length)
                audio[row, start * self.hop_length : stop * self.hop_length] = speech
        return Waveforms(audio, lengths * self.hop_length, self.sample_rate)

    def new_state(self) -> CosyVoiceState:
        """State of a fresh utterance for ``stream``."""
        return CosyVoiceState(torch.zeros(0, dtype=torch.int32))

    @torch.no_grad()
    def stream(self, codes: Tensor, state: CosyVoiceState, final: bool = False) -> Tensor:
        """Samples ``(S,)``, 15 frames at a time; the rest comes with ``final``.

        Raises:
            ValueError: A code is not one of ``codebook_size``, or the utterance has ended.
        """
        self.check_codes(codes)
        if state.ended:
            raise ValueError("this utterance has ended; new_state() begins another")
        state.frames = torch.cat([state.frames, codes[:, 0].to("cpu", torch.int32)])
        state.given += len(codes)
        speech = [torch.zeros(0)]
        while len(state.frames) >= state.offset + HOP + LOOK_AHEAD:
            speech.append(self._call(state, state.frames[: state.offset + HOP + LOOK_AHEAD], final=False))
            state.offset += HOP
            self._forget(state)
        state.spoken += sum(map(len, speech))
        if final:
            due = state.given * self.hop_length - state.spoken
            rest = len(state.frames) > state.offset
            speech.append(self._fit(self._call(state, state.frames, final=True) if rest else speech[0], due))
            state.spoken, state.ended, state.vocoder = state.spoken + due, True, None
        return torch.cat(speech).to(codes.device)

    def _call(self, state: CosyVoiceState, frames: Tensor, final: bool) -> Tensor:
        """Samples ``(S,)`` on the CPU of ``frames`` ``(N,)`` after ``state.offset``, as CosyVoice gives them.

        CosyVoice keeps the vocoder's past in a dictionary of its own; it lies there only while the call runs.
        """
        engine = self.cosyvoice.model
        engine.hift_cache_dict[state.key] = state.vocoder
        try:
            speech: Tensor = engine.token2wav(
                frames[None],
                torch.zeros(1, 0, dtype=torch.int32),
                torch.zeros(1, 0, NUM_MELS),
                self.embedding,
                state.offset,
                state.key,
                stream=False,
                finalize=final,
                speed=1.0,
            )
        finally:
            state.vocoder = engine.hift_cache_dict.pop(state.key)
        return speech[0].float().cpu().clone()  # CosyVoice gives inference tensors

    def _forget(self, state: CosyVoiceState) -> None:
        """Drop what is long spoken, so that a call does not grow with the utterance."""
        if state.offset < WINDOW:
            return
        state.frames, state.offset = state.frames[WINDOW:], state.offset - WINDOW
        state.dropped += WINDOW
        if state.dropped >= VOCODER_WINDOW and state.vocoder is not None:
            # The released server forgets all of the vocoder's past here, and with it the mels that the vocoder has
            # taken in and not spoken, because it looks ahead.
            mel, per_mel = state.vocoder["mel"], self.hop_length // MELS_PER_FRAME
            unspoken = -(-(mel.shape[2] * per_mel - state.vocoder["speech_offset"]) // per_mel)
            surplus = max(0, mel.shape[2] - unspoken - VOCODER_CONTEXT)
            offset = state.vocoder["speech_offset"] - surplus * per_mel
            state.vocoder = {"mel": mel[:, :, surplus:], "speech_offset": offset}
            state.dropped = 0

    def _fit(self, speech: Tensor, due: int) -> Tensor:
        """``speech`` with exactly ``due`` samples; a vocoder's edges may give a few more or less."""
        missing = due - len(speech)
        if abs(missing) > self.hop_length:
            raise RuntimeError(
                f"CosyVoice gave {len(speech)} samples where {due} are due at {self.sample_rate} Hz and {FRAME_RATE} "
                "codes a second; is the model a CosyVoice 3?"
            )
        return F.pad(speech, (0, missing))


def _cuts(num_frames: int) -> list[int]:
    """Where pieces of an utterance begin, and its end."""
    starts = list(range(0, num_frames, PIECE))
    if len(starts) > 1 and num_frames - starts[-1] < SHORTEST:
        starts[-1] = starts[-2] + (num_frames - starts[-2]) // 2
    return [*starts, num_frames]


def _build(model: str, fp16: bool) -> Any:
    try:
        from cosyvoice.cli.cosyvoice import CosyVoice3
    except (ImportError, OSError) as error:  # OSError: a library of theirs that does not load
        raise ImportError(
            f"CosyVoice3Detokenizer needs CosyVoice, which cannot be imported ({error}); it is not on PyPI: git clone "
            "--recursive https://github.com/FunAudioLLM/CosyVoice, pip install -r its requirements.txt, and put the "
            "clone and its third_party/Matcha-TTS on PYTHONPATH"
        ) from error
    return CosyVoice3(model, load_trt=False, load_vllm=False, fp16=fp16)


def _read_voice(file: Path, voice: str) -> Tensor:
    """The embedding ``(1, D)`` of a voice."""
    if not file.is_file():
        raise CheckpointError(
            f"there is no file of voices {str(file)!r}; take utils/new_spk2info.pt of "
            "https://github.com/FunAudioLLM/Fun-Audio-Chat and pass its path as speakers"
        )
    try:
        voices = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader has an exception class for every kind of bad file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"the file of voices {str(file)!r} cannot be read: {reason}") from error
    known = [name for name, entry in voices.items() if isinstance(entry, Mapping) and "embedding" in entry]
    if voice not in known:
        raise CheckpointError(f"{str(file)!r} has no voice {voice!r}; it has {', '.join(map(repr, known)) or 'none'}")
    embedding: Tensor = voices[voice]["embedding"]
    return embedding.float()
