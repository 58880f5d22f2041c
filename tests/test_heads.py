from __future__ import annotations

import pytest
import torch

from fac_lightning.heads import CausalTransformer, KeyValueCache, ParallelHead, RefinedHead, TextRefinedHead
from fac_lightning.packed import packed_layout
from fac_lightning.testing import check_head
from fac_lightning.types import IGNORE, bos_code, eos_code, pad_code


def refined(head=RefinedHead, group_size=5, num_codebooks=1, **options):
    torch.manual_seed(0)
    return head(8, group_size, 12, num_codebooks, width=16, num_layers=2, num_heads=2, **options)


@pytest.mark.parametrize(("group_size", "num_codebooks"), [(5, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("head", [RefinedHead, TextRefinedHead])
def test_refined_heads_keep_the_contract(head, group_size, num_codebooks):
    check_head(refined(head, group_size, num_codebooks))


@pytest.mark.parametrize("hidden_dim", [None, 16])
@pytest.mark.parametrize(("group_size", "num_codebooks"), [(5, 1), (2, 3)])
def test_parallel_head_keeps_the_contract(group_size, num_codebooks, hidden_dim):
    torch.manual_seed(0)
    check_head(ParallelHead(8, group_size, 12, num_codebooks, hidden_dim))


def test_the_check_finds_a_head_whose_replies_see_each_other():
    class Leaky(ParallelHead):
        def forward(self, hidden, labels, reply_lengths, text_embeds=None):
            return super().forward(hidden + hidden.mean(0), labels, reply_lengths)

    with pytest.raises(AssertionError, match="packed together"):
        check_head(Leaky(8, 5, 12))


def test_probabilities_of_all_codes_and_eos_sum_to_one():
    head, hidden = refined(group_size=1), torch.randn(1, 8)
    codes = [*range(12), eos_code(12)]
    logprobs = [head(hidden, torch.tensor([[[c]]]), torch.tensor([1])).logprobs.exp() for c in codes]
    assert torch.stack(logprobs).sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("code", [bos_code(12), pad_code(12), 15, -1])
def test_labels_that_cannot_be_said_are_refused(code):
    labels = torch.full((1, 5, 1), code)
    with pytest.raises(ValueError, match=f"speech label {code} cannot be said"):
        refined()(torch.randn(1, 8), labels, torch.tensor([1]))


def test_reply_lengths_must_agree_with_the_hidden_states():
    with pytest.raises(ValueError, match="reply_lengths that sum to 3"):
        refined()(torch.randn(2, 8), torch.zeros(2, 5, 1, dtype=torch.long), torch.tensor([3]))


def test_a_reply_without_groups_changes_nothing():
    head, hidden = refined(), torch.randn(3, 8)
    labels = torch.randint(0, 12, (3, 5, 1))
    with_empty = head(hidden, labels, torch.tensor([0, 2, 0, 1, 0])).logprobs
    torch.testing.assert_close(with_empty, head(hidden, labels, torch.tensor([2, 1])).logprobs)


def test_text_moves_the_codes_but_codes_do_not_move_the_text():
    head, hidden = refined(TextRefinedHead), torch.randn(2, 8)
    text = torch.randn(2, 8, requires_grad=True)
    labels = torch.randint(0, 12, (2, 5, 1))
    with_text = head(hidden, labels, torch.tensor([2]), text).logprobs
    assert not torch.allclose(with_text, head(hidden, labels, torch.tensor([2]), torch.zeros(2, 8)).logprobs)
    assert torch.autograd.grad(with_text.sum(), text, allow_unused=True)[0] is None
    with pytest.raises(ValueError, match="pass text_embeds"):
        head(hidden, labels, torch.tensor([2]))


def test_gradient_checkpointing_changes_memory_only():
    labels, hidden = torch.randint(0, 12, (4, 5, 1)), torch.randn(4, 8)
    grads = []
    for saving in (False, True):
        head = refined(gradient_checkpointing=saving)
        head(hidden, labels, torch.tensor([3, 1])).logprobs.sum().backward()
        grads.append([p.grad for p in head.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_masked_labels_give_zero_gradients_not_nan():
    head, hidden = refined(), torch.randn(2, 8, requires_grad=True)
    for rows in (2, 0):
        labels = torch.full((rows, 5, 1), IGNORE)
        head(hidden[:rows], labels, torch.tensor([rows])).logprobs.sum().backward()
    assert not hidden.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_cache_growth_keeps_what_was_written():
    torch.manual_seed(0)
    model, inputs = CausalTransformer(8, 2, 2, 16), torch.randn(2, 150, 8)  # longer than two growths
    layout = packed_layout(torch.tensor([150, 150]), "cpu")
    with torch.no_grad():
        whole = model(inputs.flatten(0, 1), torch.arange(150).repeat(2), layout).view(2, 150, 8)
        cache = KeyValueCache(2, 2)
        steps = torch.stack([model.step(inputs[:, i], cache) for i in range(150)], 1)
    torch.testing.assert_close(steps, whole, atol=1e-5, rtol=1e-5)


def test_a_width_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="width 10 does not split into 4 heads"):
        CausalTransformer(10, 1, 4, 16)
