from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fac_lightning.losses import chunked, chunked_logprobs, masked_mean, masked_sum, segment_sum


def problem(rows=11, vocab=37, dim=5, dtype=torch.float64):
    torch.manual_seed(0)
    hidden = torch.randn(rows, dim, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, dim, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocab, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, vocab, (rows,)), bias


def plain(hidden, weight, targets, bias=None):
    logits = F.linear(hidden, weight, bias)
    return -F.cross_entropy(logits, targets, reduction="none"), logits.argmax(1) == targets


@pytest.mark.parametrize("chunk_rows", [None, 1, 4, 11, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_equal_plain_autograd(chunk_rows, dtype, with_bias):
    hidden, weight, targets, bias = problem(dtype=dtype)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    upstream = torch.randn(len(targets), dtype=dtype)  # callers weight tokens one by one
    want, hits = plain(hidden, weight, targets, bias if with_bias else None)
    got, correct = chunked_logprobs(hidden, weight, targets, chunk_rows, bias if with_bias else None)
    torch.testing.assert_close(got, want)
    assert torch.equal(correct, hits)
    for left, right in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(want, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(left, right)


def test_gradcheck():
    hidden, weight, targets, bias = problem(rows=5, vocab=7, dim=3)
    assert torch.autograd.gradcheck(
        lambda h, w, b: chunked_logprobs(h, w, targets, chunk_rows=2, bias=b)[0], (hidden, weight, bias)
    )


def test_frozen_matrix_and_frozen_hidden():
    hidden, weight, targets, _ = problem()
    want = torch.autograd.grad(plain(hidden, weight, targets)[0].sum(), (hidden, weight))
    only_hidden = chunked_logprobs(hidden, weight.detach(), targets, 3)[0].sum()
    torch.testing.assert_close(torch.autograd.grad(only_hidden, hidden)[0], want[0])
    only_weight = chunked_logprobs(hidden.detach(), weight, targets, 3)[0].sum()
    torch.testing.assert_close(torch.autograd.grad(only_weight, weight)[0], want[1])


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_kept_logits_give_what_computed_ones_give(monkeypatch, softcap):
    monkeypatch.setattr(chunked, "PLAIN_ELEMENTS", 0)
    monkeypatch.setattr(chunked, "KEPT_CHUNK", 64 * 7)  # two chunks of rows
    hidden, weight = torch.randn(100, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    targets, scale = torch.randint(7, (100,)), torch.randn(100)

    def gradients(chunk_rows):
        found, correct = chunked_logprobs(hidden, weight, targets, chunk_rows, softcap=softcap)
        inputs = (hidden, weight)
        once = torch.autograd.grad((found * scale).sum(), inputs, retain_graph=True)
        again = torch.autograd.grad((found * scale).sum(), inputs)  # what was kept is as it was
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        return found, correct, *once

    for kept, computed in zip(gradients(None), gradients(64), strict=True):
        assert torch.allclose(kept, computed, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [None, 4])
def test_no_rows_give_zero_and_zero_gradients(chunk_rows):
    hidden, weight, _, _ = problem(rows=0)
    logprobs, correct = chunked_logprobs(hidden, weight, torch.zeros(0, dtype=torch.long), chunk_rows)
    assert logprobs.shape == correct.shape == (0,)
    logprobs.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_half_precision_gives_float32_close_to_exact(chunk_rows):
    hidden, weight, targets, _ = problem(dtype=torch.float32)
    half = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_()
    logprobs, _ = chunked_logprobs(*half, targets, chunk_rows)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert half[0].grad.dtype == half[1].grad.dtype == torch.bfloat16
    want = torch.autograd.grad(plain(hidden, weight, targets)[0].sum(), (hidden, weight))
    torch.testing.assert_close(half[0].grad.float(), want[0], atol=0.1, rtol=0.05)
    torch.testing.assert_close(half[1].grad.float(), want[1], atol=0.1, rtol=0.05)


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_autocast_keeps_float32_results_and_gradients(chunk_rows):
    hidden, weight, targets, _ = problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = chunked_logprobs(hidden, weight, targets, chunk_rows)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(logprobs, plain(hidden, weight, targets)[0], atol=0.1, rtol=0.05)


def test_the_full_product_is_never_held():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    hidden, weight, targets, _ = problem(rows=256, vocab=512, dim=4)
    with Largest() as seen:
        logprobs, _ = chunked_logprobs(hidden, weight, targets, chunk_rows=16)
        logprobs.sum().backward()
    assert seen.elements == 16 * 512  # 16 rows at a time, of 256


def test_wrong_shapes_are_refused():
    hidden, weight, targets, _ = problem()
    with pytest.raises(ValueError, match="select the labelled rows first"):
        chunked_logprobs(hidden, weight, targets[:-1])
    with pytest.raises(ValueError, match="chunk_rows must be at least 1, got 0"):
        chunked_logprobs(hidden, weight, targets, 0)


def test_masked_sums_ignore_what_is_masked():
    values, mask = torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([True, False, True])
    assert masked_sum(values, mask).item() == 4
    assert masked_mean(values, mask).item() == 2
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_segment_sums():
    sums = segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 3)
    assert sums.tolist() == [2, 0, 5]


def test_the_gradient_of_one_chunk_is_added_to_nothing(monkeypatch):
    monkeypatch.setattr(chunked, "PLAIN_ELEMENTS", 0)
    hidden, weight = torch.randn(8, 16, requires_grad=True), torch.randn(50_000, 16, requires_grad=True)
    logprobs, _ = chunked_logprobs(hidden, weight, torch.arange(8))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.autograd.grad(logprobs.sum(), (hidden, weight))
    names = {event.name for event in profiler.events()}
    assert "aten::addmm_" not in names
    assert "aten::mm" in names
