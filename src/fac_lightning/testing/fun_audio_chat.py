"""Checkpoints of the released Fun-Audio-Chat's format, tiny and random: any group size, ids, widths, kind of LLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fac_lightning.interop.fun_audio_chat.checkpoint import state_shapes
from fac_lightning.interop.fun_audio_chat.config import build_model, part_arguments
from fac_lightning.interop.fun_audio_chat.names import places

__all__ = ["make_fun_audio_chat", "tiny_config", "write_checkpoint"]

BYTES = 256
TEXT_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|sil|>")
SPEECH_SPECIAL = ("<|audio_bos|>", "<|audio_eos|>", "<|audio_pad|>", "<|unk|>")


def make_fun_audio_chat(folder: str | Path) -> Path:
    """Write a checkpoint of a few ten thousand random weights, with tokenizers; gives its folder.

    It has the released group size of 5, but only 20 speech codes, 16 mel bands and 2 s of hearing. Letters are tokens.
    """
    return write_checkpoint(Path(folder), tiny_config(group_size=5))


def tiny_config(
    group_size: int = 3,
    mode: str = "replace",
    codes: int = 20,
    special: tuple[int, int, int] = (22, 20, 23),  # rows of bos, eos, pad
    dim: int = 24,
    n_window: int = 7,
    tied: bool = False,
    experts: int = 0,
    text_order: tuple[str, ...] = TEXT_SPECIAL,
    **top: Any,
) -> dict[str, Any]:
    """Content of ``config.json``.

    Args:
        group_size: Speech tokens per position.
        mode: How user features meet the user's codes: "replace" or "add".
        codes: Real speech codes; the table has four rows more.
        special: Rows of bos, eos and pad.
        dim: Width of the LLM.
        n_window: Half the mel frames of the encoder's chunks.
        tied: Whether the LLM ties its matrices.
        experts: Of a mixture; 0 for a dense LLM.
        text_order: Special tokens in the order of their ids.
        top: Further fields.
    """
    ids = {token: BYTES + place for place, token in enumerate(text_order)}
    text = {
        "model_type": "qwen3_moe" if experts else "qwen3",
        "vocab_size": BYTES + 8,
        "hidden_size": dim,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_theta": 1e6,
        "tie_word_embeddings": tied,
        "eos_token_id": ids["<|endoftext|>"],
        "audio_bos_index": ids["<|audio_bos|>"],
        "audio_eos_index": ids["<|audio_eos|>"],
        "sil_index": ids["<|sil|>"],
    }
    if experts:
        text |= {
            "num_experts": experts,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "decoder_sparse_step": 1,
        }
        text |= {"output_router_logits": True, "router_aux_loss_coef": 0.03, "norm_topk_prob": True}
    audio = {
        "model_type": "funaudiochat_audio_encoder",
        "num_mel_bins": 16,
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "n_window": n_window,
        "output_dim": dim,
        "codebook_size": codes + 4,
        "bos_token_id": special[0],
        "eos_token_id": special[1],
        "pad_token_id": special[2],
        "group_size": group_size,
        "continuous_features_mode": mode,
        "crq_transformer_config": {
            "model_type": "qwen3",
            "hidden_size": 20,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "rope_theta": 1e4,
            "vocab_size": 99,
        },
    }
    return {
        "architectures": ["FunAudioChatForConditionalGeneration"],
        "model_type": "funaudiochat",
        "audio_token_index": ids["<|AUDIO|>"],
        "audio_config": audio,
        "text_config": text,
        "torch_dtype": "float32",
        **top,
    }


def write_checkpoint(
    folder: Path, config: dict[str, Any], shards: int = 1, dtype: torch.dtype = torch.float32, tokenizers: bool = True
) -> Path:
    """A checkpoint folder with random weights.

    Args:
        folder: Made when missing.
        config: Content of ``config.json``.
        shards: Files that the weights are spread over.
        dtype: Of the weights.
        tokenizers: Also write what the processor needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        wanted = places(state_shapes(build_model(part_arguments(config))))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (1 if "norm" in name else 0) + torch.randn(place.shape, generator=generator).mul(place.shape[-1] ** -0.5)
        for name, place in wanted.items()
    }
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        order = sorted(tensors)
        owners: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            names = order[shard::shards]
            save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
            owners |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": owners}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if tokenizers:
        _write_tokenizers(folder, config)
    return folder


def _write_tokenizers(folder: Path, config: dict[str, Any]) -> None:
    audio, text = config["audio_config"], config["text_config"]
    known = {
        config["audio_token_index"]: "<|AUDIO|>",
        text["audio_bos_index"]: "<|audio_bos|>",
        text["audio_eos_index"]: "<|audio_eos|>",
        text["sil_index"]: "<|sil|>",
        text["eos_token_id"]: "<|endoftext|>",
    }
    free = [i for i in range(BYTES, BYTES + 8) if i not in known]
    known |= dict(zip(free, ("<|im_start|>", "<|im_end|>", "<|audio_pad|>"), strict=True))
    vocabulary = {chr(i): i for i in range(BYTES)} | {token: i for i, token in known.items()}
    _tokenizer(vocabulary, list(known.values()), "<|endoftext|>").save_pretrained(str(folder))
    special = {audio["bos_token_id"]: "<|audio_bos|>", audio["eos_token_id"]: "<|audio_eos|>"}
    special[audio["pad_token_id"]] = "<|audio_pad|>"
    rows = [row for row in range(audio["codebook_size"]) if row not in special]
    special[rows.pop()] = "<|unk|>"
    vocabulary = {f"[AU{i:04}]": row for i, row in enumerate(rows)} | {token: row for row, token in special.items()}
    tokenizer = _tokenizer(vocabulary, list(vocabulary), "<|audio_pad|>", audio_group_size=audio["group_size"])
    tokenizer.save_pretrained(str(folder / "speech_tokenizer"))
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=audio["num_mel_bins"], chunk_length=2, sampling_rate=16000)
    extractor.save_pretrained(str(folder))


def _tokenizer(vocabulary: dict[str, int], added: list[str], pad: str, **options: Any) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=None))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, **options)
    tokenizer.add_tokens(added, special_tokens=True)
    assert tokenizer.get_vocab() == vocabulary
    return tokenizer
