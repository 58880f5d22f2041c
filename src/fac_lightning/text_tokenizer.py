"""Text tokenizers: load one so that it knows our special tokens, or train a small one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fac_lightning.prompts import IM_END, PAD, SPECIAL_TOKENS

__all__ = ["check_rows", "load_text_tokenizer", "text_fingerprint", "train_text_tokenizer"]


def check_rows(tokenizer: Any, rows: int) -> None:
    """Refuse an embedding that has no row for some token.

    Args:
        tokenizer: Of transformers.
        rows: Of the backbone's embedding.

    Raises:
        ValueError: With both numbers.
    """
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1  # not len: there may be holes
    if ids > rows:
        raise ValueError(
            f"the text tokenizer has {ids} tokens, the backbone's embedding {rows} rows; give the backbone a "
            f"vocab_size of at least {ids}"
        )


def text_fingerprint(tokenizer: Any) -> str | None:
    """Name of all that decides which tokens a text has; None for a tokenizer that is not one of ``tokenizers``.

    Args:
        tokenizer: Of transformers.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    whole = json.loads(backend.to_str())
    parts = {name: whole.get(name) for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def load_text_tokenizer(name: str | Path) -> Any:
    """A transformers tokenizer that knows ``prompts.SPECIAL_TOKENS`` as single tokens.

    Tokens that it lacks are added behind its vocabulary; ids that it has stay as they are.

    Args:
        name: Hub id or local folder.

    Raises:
        ValueError: Nothing can be loaded under this name.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no text tokenizer can be loaded from {str(name)!r} ({error}). Give a hub id, or a folder with a "
            "tokenizer.json, for instance one that `train_text_tokenizer` made"
        ) from error
    # Also a token that stands in the vocabulary as a plain word must be made special, or it would be split.
    missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.all_special_tokens]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer


def train_text_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> Any:
    """Train a byte-level BPE tokenizer and save it where ``load_text_tokenizer`` finds it.

    Every text can be encoded, also one with characters never seen. The same texts give the same tokenizer.

    Args:
        texts: What to learn merges from.
        vocab_size: Size aimed at; special tokens and the 256 bytes are part of it.
        folder: Written as transformers' ``save_pretrained`` does.

    Raises:
        ValueError: ``vocab_size`` leaves no room for the bytes and special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} (256 bytes and the special tokens), got {vocab_size}")
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        eos_token=IM_END,
        extra_special_tokens=[t for t in SPECIAL_TOKENS if t not in (PAD, IM_END)],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(str(folder))
    return load_text_tokenizer(folder)
