"""fac bench growth, the roof, compiled cells, and time by part. FLOPs and names are judged, no time is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fac_lightning.bench import (
    BenchSettings,
    OurImplementation,
    count_flops,
    find_benchmark,
    generate,
    growth,
    make_conversations,
    run_benchmark,
    serve,
    sizes_of,
    time_by_part,
    train,
)
from fac_lightning.bench.growth import VOCABULARIES, points_of
from fac_lightning.cli.app import main

BATCHES, GROUP_SIZES, LENGTHS = (1, 2, 4), (1, 2, 5), (0.5, 1, 2)


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "BATCHES", BATCHES)
        patch.setattr(growth, "GROUP_SIZES", GROUP_SIZES)
        patch.setattr(growth, "LENGTHS", LENGTHS)
        return run_benchmark(find_benchmark("growth"), BenchSettings(rounds=1))


@pytest.fixture
def compiled(monkeypatch):
    """What is asked to be compiled; it runs as it is."""
    found = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: found.append(call) or call)
    return found


def flops(report, sweep, amounts):
    return [report[f"{sweep}{amount}"].flops for amount in amounts]


def test_rows_of_one_length_cost_what_they_are(report):
    found = flops(report, "batch ", BATCHES)
    assert found == [found[0] * rows for rows in BATCHES]
    assert report.findings["batch: exponent of FLOPs"] == pytest.approx(1)
    assert report["batch 4"].work["audio_s"] == pytest.approx(4 * report["batch 1"].work["audio_s"])


def test_more_frames_to_a_position_are_less_work(report):
    found = flops(report, "k ", GROUP_SIZES)
    assert found == sorted(found, reverse=True)
    assert len({report[f"k {k}"].work["audio_s"] for k in GROUP_SIZES}) == 1
    # speech takes 248 positions at k = 5: each code of a reply, its end mark with it, is said either way
    assert {report[f"k {k}"].values["codes"] for k in (1, 5)} == {620.0}
    assert report["k 1"].values["positions"] > 2.5 * report["k 5"].values["positions"]


def test_an_entry_of_the_vocabulary_costs_a_label_three_products(report):
    found = flops(report, "vocabulary ", VOCABULARIES["tiny"])
    assert found == sorted(found)
    labels, dim = report["vocabulary 2000"].values["text labels"], sizes_of("tiny").dim
    assert labels == 136
    assert found[1] - found[0] == 6 * labels * dim * 2000  # one forward, two backward, each a product and a sum
    assert report.findings["vocabulary: FLOPs a label, entry and channel"] == 6


def test_longer_audio_costs_more_and_rows_share_their_prompt_with_it(report):
    found = flops(report, "audio x", LENGTHS)
    assert found == sorted(found)
    assert report["audio x2"].work["audio_s"] == pytest.approx(2 * report["audio x1"].work["audio_s"], rel=0.01)
    assert 0.3 < report.findings["audio: exponent of positions"] < 0.7  # prompts and marks stay
    assert report.findings["audio: exponent of FLOPs"] > report.findings["audio: exponent of positions"]


def test_sweeps_meet_in_the_training_step(report):
    ours = OurImplementation()
    ours.build(sizes_of("tiny"), "cpu")
    batch = ours.train_batch(make_conversations(sizes_of("tiny")))
    wanted = count_flops(lambda: ours.train_step(batch))
    assert {report[name].flops for name in ("k 5", "vocabulary 4000", "audio x1")} == {wanted}


def test_a_sweep_can_be_asked_for_alone(capsys):
    names = [point.name for point in points_of(BenchSettings(over=("audio",)))]
    assert names == ["audio x0.5", "audio x1", "audio x2", "audio x4"]
    assert main(["bench", "growth", "--over", "rows"]) == 2
    assert "--over rows: there is no such sweep; it takes batch, k, vocabulary, audio" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train", "--over", "batch"], ["growth", "--compiled"], ["loss", "--compiled"]])
def test_an_option_that_changes_nothing_is_refused(words, capsys):
    assert main(["bench", *words]) == 2
    option = next(word for word in words if word.startswith("--"))
    assert f"{option} means nothing to fac bench {words[0]}; leave it out" in capsys.readouterr().err


def test_training_is_held_against_one_large_product_and_compiled_layers(monkeypatch, compiled):
    monkeypatch.setattr(train, "WASTES", {"plain: all three": train.WASTES["plain: all three"]})
    report = run_benchmark(find_benchmark("train"), BenchSettings(rounds=1, compiled=True))
    ours, roof = report["ours"], report["one large product"]
    assert roof.flops == 2 * 512**3
    share = (ours.flops / ours.median) / (roof.flops / roof.median)
    assert report.findings["ours, share of one large product's FLOP/s"] == pytest.approx(share)
    assert report.findings["GFLOP/s of one large product"] == pytest.approx(roof.flops / roof.median / 1e9)
    assert len(compiled) == 4 + 2  # layers of backbone and head
    assert report["ours, compiled"].values["first step s"] > 0
    assert report["ours, compiled"].work == ours.work
    assert report.findings["ours / compiled, time"] == report.ratio("ours", "ours, compiled")


@pytest.mark.parametrize(("module", "cell"), [(generate, "engine, compiled"), (serve, "16 at once, compiled")])
def test_a_compiled_engine_says_what_the_others_say(module, cell, monkeypatch, compiled):
    monkeypatch.setattr(generate, "GROUPS", 2)
    monkeypatch.setattr(serve, "GROUPS", 2)
    monkeypatch.setattr(serve, "STREAMS", 2)
    benchmark, settings = find_benchmark(module.__name__.rpartition(".")[2]), BenchSettings(rounds=1, compiled=True)
    trial = next(each for each in benchmark.cells(settings) if each.name == cell).setup()
    trial.call()
    values = trial.values()
    assert max(value for name, value in values.items() if name.startswith("first answer")) > 0
    assert values.get("identical", 1) == 1
    assert compiled


class Two(nn.Module):
    """A convolution, then a product, then something of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(4, 4, 3), nn.Linear(6, 5)

    def forward(self, x):
        return self.two(self.one(x.exp())).sigmoid().sum()


def test_time_is_told_by_part_also_of_the_backward_pass():
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    inputs = torch.randn(2, 4, 8)

    def step() -> None:
        for _ in range(2):  # the second finds gradients to add to
            model(inputs).backward()
        optimizer.step()

    found = time_by_part(step, {"one": model.one, "two": model.two})
    assert set(found) == {"before all", "one", "two", "behind two", "optimizer", "gradients"}
    assert {"aten::conv1d", "aten::convolution_backward"} <= set(found["one"])
    assert {"aten::linear", "aten::mm"} <= set(found["two"])
    assert "aten::convolution_backward" not in found["two"]
    assert "aten::mm" not in found["one"]
    assert {"aten::sigmoid", "aten::sigmoid_backward"} <= set(found["behind two"])
    assert "aten::_fused_adamw_" in found["optimizer"]
    assert "aten::exp" in found["before all"]
    assert not model.one._forward_hooks
    assert not model.one._forward_pre_hooks
