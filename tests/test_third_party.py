"""Parts that the package has never seen: defined here, named by dotted path, trained like any other."""

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fac_lightning.adapters.base import CodeAdapter, FeatureAdapter, Fusion
from fac_lightning.config import instantiate
from fac_lightning.heads.base import SpeechHead
from fac_lightning.testing import check_adapter, check_fusion, check_head, tiny_batch
from fac_lightning.types import IGNORE, HeadOutput, SpeechFeatures, code_vocab_size, eos_code, pad_code

DIM, GROUP, CODES = 16, 5, 32


class MaxPooling(FeatureAdapter):
    """The loudest frame of each group, projected."""

    def __init__(self, in_dim: int, group_size: int, dim: int) -> None:
        super().__init__()
        self.in_dim, self.group_size, self.dim = in_dim, group_size, dim
        self.proj = nn.Linear(in_dim, dim)

    def forward(self, features, lengths):
        steps = torch.arange(features.shape[1], device=features.device)
        features = features.masked_fill((steps >= lengths[:, None])[..., None], -1e4)
        padded = F.pad(features, (0, 0, 0, -features.shape[1] % self.group_size), value=-1e4)
        pooled = padded.unflatten(1, (-1, self.group_size)).amax(2)
        groups = -(-lengths // self.group_size)
        keep = torch.arange(pooled.shape[1], device=features.device) < groups[:, None]
        return SpeechFeatures(self.proj(pooled).masked_fill(~keep[..., None], 0), groups)


class RecurrentAdapter(CodeAdapter):
    """A GRU over the frames of a group."""

    def __init__(self, codebook_size: int, group_size: int, dim: int, hidden: int = 8) -> None:
        super().__init__()
        self.codebook_size, self.group_size, self.num_codebooks, self.dim = codebook_size, group_size, 1, dim
        self.embed = nn.Embedding(code_vocab_size(codebook_size), hidden)
        self.gru = nn.GRU(hidden, dim, batch_first=True)

    def forward(self, codes):
        if len(codes) == 0:
            return self.embed.weight.new_zeros(0, self.dim)
        return self.gru(self.embed(codes[..., 0]))[1][0]


class GatedFusion(Fusion):
    """The sum, scaled by a learned gate where several streams meet."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, streams, present):
        total, several = streams.sum(0), (present.sum(0) > 1)[:, None]
        return torch.where(several, 2 * self.gate.sigmoid() * total, total)


class TinyHead(SpeechHead):
    """One linear layer for every frame of the group."""

    def __init__(self, dim: int, group_size: int, codebook_size: int) -> None:
        super().__init__()
        self.dim, self.group_size, self.num_codebooks, self.codebook_size = dim, group_size, 1, codebook_size
        self.out = nn.Linear(dim, group_size * code_vocab_size(codebook_size))

    def _logits(self, hidden):
        logits = self.out(hidden).unflatten(-1, (self.group_size, -1))
        logits[..., [self.codebook_size, pad_code(self.codebook_size)]] = -torch.inf
        return logits

    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        logprobs, mask = self._logits(hidden).log_softmax(-1), labels != IGNORE
        picked = logprobs.gather(-1, labels.masked_fill(~mask, 0)).masked_fill(~mask, 0)
        return HeadOutput(picked, (logprobs.argmax(-1, keepdim=True) == labels) & mask, mask)

    def new_state(self, batch_size):
        return None

    def step(self, hidden, state, sample, text_embeds=None):
        logits, ended, codes = self._logits(hidden), torch.zeros(len(hidden), dtype=torch.bool), []
        for frame in logits.unbind(1):
            codes.append(sample(frame).masked_fill(ended, pad_code(self.codebook_size)))
            ended = ended | (codes[-1] == eos_code(self.codebook_size))
        return torch.stack(codes, 1)[..., None]


def recipe(**swapped):
    """A model node as a recipe has it, with slots swapped."""
    sizes = {"codebook_size": CODES, "group_size": GROUP, "dim": DIM}
    return {
        "_target_": "fac_lightning.models.SpeechLM",
        "backbone": {"_target_": "fac_lightning.testing.tiny_backbone", "dim": DIM},
        "encoder": {"_target_": "fac_lightning.testing.FrameEncoder"},
        "feature_adapter": {
            "_target_": "fac_lightning.adapters.ConcatGrouping",
            "in_dim": 8,
            "group_size": GROUP,
            "dim": DIM,
        },
        "code_adapter": {"_target_": "fac_lightning.adapters.ConcatCodeGrouping", **sizes},
        "fusion": {"_target_": "fac_lightning.adapters.SumFusion"},
        "head": {"_target_": "fac_lightning.heads.ParallelHead", **sizes},
        **swapped,
    }


SIZES = {"codebook_size": CODES, "group_size": GROUP, "dim": DIM}
SWAPS = {
    "feature_adapter": {"_target_": f"{__name__}.MaxPooling", "in_dim": 8, "group_size": GROUP, "dim": DIM},
    "code_adapter": {"_target_": f"{__name__}.RecurrentAdapter", **SIZES, "hidden": 6},
    "fusion": {"_target_": f"{__name__}.GatedFusion"},
    "head": {"_target_": f"{__name__}.TinyHead", **SIZES},
}


class Endless:
    def __init__(self, line):
        self.line = line

    def __iter__(self):
        while True:
            yield self.line


@pytest.mark.parametrize("slot", [*SWAPS, "all"])
def test_a_third_party_part_trains_by_dotted_path(slot, tmp_path):
    torch.manual_seed(0)
    swapped = SWAPS if slot == "all" else {slot: SWAPS[slot]}
    model = instantiate(recipe(**swapped), "model")
    for name in swapped:
        assert type(getattr(model, name)).__module__ == __name__
    node = {"_target_": "fac_lightning.tasks.SpeechSFT", "lr": 1e-2, "warmup_steps": 0}
    task = instantiate(node, "task", model=model)
    line = tiny_batch(model, rows=3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        first = task.loss(model(line), line.text_token_total, line.speech_token_total)
    trainer = lightning.Trainer(
        max_steps=20,
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, Endless(line), Endless(line))
    with torch.no_grad():
        last = task.loss(model(line), line.text_token_total, line.speech_token_total)
    assert last < 0.6 * first
    for name in swapped:
        for own, parameter in getattr(model, name).named_parameters():
            assert not torch.equal(parameter, before[f"{name}.{own}"]), f"{name}.{own} was not trained"


def test_third_party_parts_keep_the_contracts():
    torch.manual_seed(0)
    check_adapter(MaxPooling(8, GROUP, DIM))
    check_adapter(RecurrentAdapter(CODES, GROUP, DIM))
    check_head(TinyHead(DIM, GROUP, CODES))
    check_fusion(GatedFusion())


def test_third_party_parts_talk():
    from fac_lightning.generation import Decoding, Generator, UserTurn
    from fac_lightning.prompts import SPECIAL_TOKENS, ChatFormat

    class Bytes:
        def encode(self, text, add_special_tokens=False):
            if text in SPECIAL_TOKENS:
                return [SPECIAL_TOKENS.index(text)]
            return [7 + b for b in text.encode()]

        def decode(self, token_ids, skip_special_tokens=False):
            return bytes(max(0, i - 7) % 256 for i in token_ids).decode(errors="replace")

        def convert_tokens_to_ids(self, tokens):
            return SPECIAL_TOKENS.index(tokens)

    model = instantiate(recipe(**SWAPS), "model").eval()
    replies = Generator(model, ChatFormat(Bytes())).generate(
        [UserTurn(audio=torch.ones(n)) for n in (90, 470)], "S2M", Decoding(max_positions=4)
    )
    for reply in replies:
        assert reply.codes.shape[1] == 1
        assert len(reply.text_ids) <= 4
