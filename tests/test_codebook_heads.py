"""Heads for one codebook and for many: what they know, what they cost, and that they learn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fac_lightning.config import instantiate
from fac_lightning.heads import (
    CausalTransformer,
    DelayHead,
    DepthHead,
    MultiTokenHead,
    NestedRefinedHead,
    ParallelHead,
    RefinedHead,
    SpeechHead,
)
from fac_lightning.heads.placed_linear import PlacedLinear, SharedLinear
from fac_lightning.testing import check_head, tiny_batch, tiny_speech_lm
from fac_lightning.types import IGNORE, bos_code, eos_code, pad_code

DIM, CODES = 8, 12
SMALL = {"width": 16, "num_heads": 2, "num_layers": 1}
HEADS: dict[str, Callable[..., SpeechHead]] = {
    "refined": lambda k, q, **more: RefinedHead(DIM, k, CODES, q, **SMALL, **more),
    "nested": lambda k, q, **more: NestedRefinedHead(
        DIM, k, CODES, q, depth_width=32, depth_layers=1, depth_heads=2, **SMALL, **more
    ),
    "depth": lambda k, q, **more: DepthHead(DIM, k, CODES, q, **SMALL, **more),
    "depth of Moshi": lambda k, q, **more: DepthHead(DIM, k, CODES, q, weights_per_codebook=True, **SMALL, **more),
    "delay": lambda k, q, **more: DelayHead(DIM, k, CODES, q, **SMALL, **more),
    "delay of Moshi": lambda k, q, **more: DelayHead(DIM, k, CODES, q, [0] + [1] * (q - 1), **SMALL, **more),
    "multi token": lambda k, q, **more: MultiTokenHead(DIM, k, CODES, q, **SMALL, **more),
    "parallel": lambda k, q, **more: ParallelHead(DIM, k, CODES, q, hidden_dim=16, **more),
}
NEW = [name for name in HEADS if name not in ("refined", "parallel")]
SHAPES = [(5, 1), (2, 8), (1, 4)]


def groups(k: int, q: int, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and labels of random codes."""
    return torch.randn(count, DIM), torch.randint(0, CODES, (count, k, q))


@pytest.mark.parametrize(("k", "q"), [*SHAPES, (3, 4)])
@pytest.mark.parametrize("name", NEW)
def test_every_head_keeps_the_contract(name, k, q):
    check_head(HEADS[name](k, q))


@pytest.mark.parametrize("delays", [[0, 0, 0], [0, 3, 3], [0, 2, 7]])
def test_any_delays_keep_the_contract(delays):
    check_head(DelayHead(DIM, 3, CODES, 3, delays, **SMALL))


@pytest.mark.parametrize(("k", "q"), SHAPES)
@pytest.mark.parametrize("name", NEW)
def test_toy_codes_are_learned(name, k, q):
    """Two replies by heart, the second one ends inside its last group."""
    head, (hidden, labels), lengths = HEADS[name](k, q), groups(k, q), torch.tensor([4, 2])
    labels[5, k // 2], labels[5, k // 2 + 1 :] = eos_code(CODES), IGNORE
    optimizer, losses = torch.optim.Adam(head.parameters(), lr=1e-2), []
    for _ in range(40):
        out = head(hidden, labels, lengths)
        loss = -out.logprobs.sum() / out.mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2
    assert losses[-1] < 0.2
    # and what was learned is said: greedy generation gives the labels, pad behind eos
    state, said = head.new_state(1), []
    with torch.no_grad():
        for group in (4, 5):
            said.append(head.step(hidden[group : group + 1], state, lambda logits: logits.argmax(-1)))
    wanted = labels[4:].clone()
    wanted[1].view(-1)[(k // 2) * q + 1 :] = pad_code(CODES)
    assert torch.equal(torch.cat(said), wanted)


def knows(name: str, k: int, q: int, of: tuple[int, int, int], asked: tuple[int, int, int]) -> bool:
    """Whether a head that says the code ``asked`` was shown the code ``of``, both (group, frame, codebook)."""
    flat, other = (x[0] * k * q + x[1] * q + x[2] for x in (of, asked))
    (group, frame, codebook), (then, later, above) = of, asked
    match name:
        case "refined" | "nested":
            return flat < other
        case "depth" | "depth of Moshi":
            return group == then and flat < other
        case "delay" | "delay of Moshi":
            delays = range(q) if name == "delay" else [0] + [1] * (q - 1)
            return group < then or (group == then and frame + delays[codebook] < later + delays[above])
        case "multi token":  # module i is shown frame i - 1 of this group and of the ones before
            if group == then:
                return frame < later
            return group < then and (frame < later or frame == k - 1)
    return False


@pytest.mark.parametrize("name", HEADS)
def test_each_code_knows_of_the_codes_that_its_head_promises(name):
    k, q = 3, 3
    head, (hidden, labels) = HEADS[name](k, q).double(), groups(k, q, 5)
    hidden, lengths = hidden.double(), torch.tensor([3, 2])
    places = [(group, frame, codebook) for group in range(3) for frame in range(k) for codebook in range(q)]
    with torch.no_grad():
        before = head(hidden, labels, lengths).logprobs
        for of in places:
            changed = labels.clone()
            changed[of] = (changed[of] + 1) % CODES
            moved = head(hidden, changed, lengths).logprobs != before
            moved[of] = False
            assert not moved[3:].any(), "another reply"
            found = [asked for asked in places if moved[asked]]
            assert found == [asked for asked in places if knows(name, k, q, of, asked)], f"{of} of {name}"


@pytest.mark.parametrize(
    ("name", "k", "q", "passes"),
    [
        ("refined", 5, 1, {16: 5}),
        ("refined", 2, 8, {16: 16}),
        ("nested", 5, 1, {16: 5, 32: 5}),
        ("nested", 2, 8, {16: 2, 32: 16}),
        ("depth", 5, 1, {16: 5}),
        ("depth", 2, 8, {16: 16}),
        ("delay", 5, 1, {16: 5}),
        ("delay", 2, 8, {16: 9}),
        ("delay of Moshi", 2, 8, {16: 3}),
        ("multi token", 5, 1, {16: 5}),
        ("multi token", 2, 8, {16: 2}),
        ("parallel", 2, 8, {}),
    ],
)
def test_passes_of_a_group(monkeypatch, name, k, q, passes):
    """By the width of the transformer they go through; the table in docs/parts.md."""
    counted: dict[int, int] = {}
    step = CausalTransformer.step

    def counting(self, inputs, cache):
        counted[inputs.shape[-1]] = counted.get(inputs.shape[-1], 0) + 1
        return step(self, inputs, cache)

    monkeypatch.setattr(CausalTransformer, "step", counting)
    head = HEADS[name](k, q)
    with torch.no_grad():
        head.step(torch.randn(1, DIM), head.new_state(1), lambda logits: logits.argmax(-1))
    assert counted == passes


@pytest.mark.parametrize("name", NEW)
def test_the_cache_of_a_reply_grows_by_what_the_head_remembers(name):
    k, q = 2, 4
    head = HEADS[name](k, q)
    state = head.new_state(3)
    with torch.no_grad():
        for _ in range(2):
            head.step(torch.randn(3, DIM), state, lambda logits: logits.argmax(-1))
    lengths = [] if state is None else [cache.length for cache in state.caches]
    per_group = {"nested": [2], "depth": [], "delay": [5], "delay of Moshi": [3], "multi token": [1, 1]}
    assert lengths == [2 * length for length in per_group[name if name != "depth of Moshi" else "depth"]]


@pytest.mark.parametrize("name", NEW)
def test_masked_labels_give_zero_gradients_not_nan(name):
    for count in (2, 0):
        head, hidden = HEADS[name](2, 4), torch.randn(count, DIM, requires_grad=True)
        labels = torch.full((count, 2, 4), IGNORE)
        head(hidden, labels, torch.tensor([count])).logprobs.sum().backward()
        assert not hidden.grad.any()
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("name", NEW)
def test_gradient_checkpointing_changes_memory_only(name):
    hidden, labels = groups(2, 4, 4)
    grads = []
    for saving in (False, True):
        torch.manual_seed(0)
        head = HEADS[name](2, 4, gradient_checkpointing=saving)
        head(hidden, labels, torch.tensor([3, 1])).logprobs.sum().backward()
        grads.append([p.grad for p in head.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("name", NEW)
def test_half_precision_weights_score_in_float32(name):
    head, (hidden, labels), lengths = HEADS[name](2, 4), groups(2, 4), torch.tensor([4, 2])
    want = head(hidden, labels, lengths).logprobs
    head, hidden = head.bfloat16(), hidden.bfloat16()
    got = head(hidden, labels, lengths).logprobs
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=0.1, rtol=0)
    with torch.no_grad():
        said = head.step(hidden[:1], head.new_state(1), lambda logits: logits.argmax(-1))
    assert said.shape == (1, 2, 4)


@pytest.mark.parametrize("code", [bos_code(CODES), pad_code(CODES), -1])
@pytest.mark.parametrize("name", HEADS)
def test_labels_that_cannot_be_said_are_refused(name, code):
    with pytest.raises(ValueError, match=f"speech label {code} cannot be said"):
        HEADS[name](2, 4)(torch.randn(1, DIM), torch.full((1, 2, 4), code), torch.tensor([1]))


@pytest.mark.parametrize("name", HEADS)
def test_reply_lengths_must_agree_with_the_hidden_states(name):
    with pytest.raises(ValueError, match="reply_lengths that sum to 3"):
        HEADS[name](2, 4)(*groups(2, 4, 2), torch.tensor([3]))


@pytest.mark.parametrize("name", HEADS)
def test_sizes_below_one_are_refused(name):
    with pytest.raises(
        ValueError, match=r"group_size, codebook_size and num_codebooks must be at least 1, got 8, 0, 12"
    ):
        HEADS[name](0, 1)


@pytest.mark.parametrize("delays", [[0, 1], [1, 2, 3], [0, 2, 1], [0, -1, 1], []])
def test_delays_that_do_not_fit_are_refused(delays):
    with pytest.raises(ValueError, match=r"delays \[.*\] do not fit 3 codebooks: give one per codebook"):
        DelayHead(DIM, 2, CODES, 3, delays)


def test_the_delay_head_asks_pass_by_pass():
    assert DelayHead(DIM, 2, CODES, 3, width=8, num_heads=1).order == (0, 3, 1, 4, 2, 5)
    assert DelayHead(DIM, 2, CODES, 3, [0, 1, 1], width=8, num_heads=1).order == (0, 3, 1, 2, 4, 5)
    assert DelayHead(DIM, 2, CODES, 3, [0, 0, 0], width=8, num_heads=1).order == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("k", [1, 2])
def test_equal_weights_per_codebook_are_shared_weights(k):
    shared, own = HEADS["depth"](k, 4), HEADS["depth of Moshi"](k, 4)
    own.load_state_dict({name: value.expand_as(own.state_dict()[name]) for name, value in shared.state_dict().items()})
    hidden, labels = groups(k, 4)
    lengths = torch.tensor([2, 4])
    want = shared(hidden, labels, lengths).logprobs
    torch.testing.assert_close(own(hidden, labels, lengths).logprobs, want, atol=1e-5, rtol=1e-5)


def test_a_placed_layer_takes_the_matrix_of_its_place():
    layer, line = PlacedLinear(4, 6, 3), torch.randn(9, 4)
    alone = torch.stack([layer(line[i : i + 1], i)[0] for i in range(9)])
    torch.testing.assert_close(layer(line), alone)
    assert not torch.allclose(layer(line[:1], 0), layer(line[:1], 1))
    plain = SharedLinear(4, 6)
    assert torch.equal(plain(line[:1], 0), plain(line[:1], 1))


@pytest.mark.parametrize(("k", "q"), SHAPES)
@pytest.mark.parametrize("name", NEW)
def test_every_parameter_learns(name, k, q):
    head = HEADS[name](k, q)
    head(*groups(k, q), torch.tensor([4, 2])).logprobs.sum().backward()
    assert [n for n, p in head.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("name", NEW)
def test_every_parameter_of_a_whole_model_learns(name):
    model = tiny_speech_lm(dim=DIM, group_size=5, codebook_size=CODES, num_codebooks=2, head=HEADS[name](5, 2))
    output = model(tiny_batch(model))
    (output.text_loss_sum + output.speech_loss_sum).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_recipe_names_delays():
    node = {"_target_": "fac_lightning.heads.DelayHead", "dim": 8, "group_size": 2, "codebook_size": 12, "width": 16}
    head = instantiate({**node, "num_codebooks": 3, "delays": [0, 1, 1]}, "model.head")
    assert head.delays == (0, 1, 1)
