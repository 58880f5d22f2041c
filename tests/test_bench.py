"""fac bench: what is measured, how it is shown, and that what is measured is right. No time is judged here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

import pytest
import torch

from fac_lightning.bench import (
    CONFIGS,
    Benchmark,
    BenchReport,
    BenchSettings,
    Cell,
    CellResult,
    Trial,
    WordTokenizer,
    build_model,
    find_benchmark,
    load_implementation,
    make_conversations,
    pack,
    peak_memory,
    report_dict,
    report_lines,
    run_benchmark,
    sizes_of,
)
from fac_lightning.cli.app import main
from fac_lightning.cli.bench_command import BENCHMARKS
from fac_lightning.types import IGNORE


class CountingBenchmark(Benchmark):
    """Two cells that write down when it is their turn."""

    name, summary = "counting", "nothing"

    def __init__(self) -> None:
        self.turns: list[str] = []

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        def setup(name: str) -> Trial:
            values = lambda: {"answer": 42.0}  # noqa: E731
            return Trial(lambda: self.turns.append(name), {"items": 7.0}, values, count_flops=False, count_memory=False)

        return [Cell(name, lambda name=name: setup(name)) for name in ("one", "two")]

    def findings(self, report: BenchReport) -> dict[str, float]:
        return {"ratio": report.ratio("two", "one")}


def test_cells_have_their_turns_in_every_round():
    benchmark = CountingBenchmark()
    report = run_benchmark(benchmark, BenchSettings(rounds=3, reps=2))
    assert benchmark.turns == ["one", "two", *(["one", "one", "two", "two"] * 3)]  # the warm-up, then the rounds
    assert [len(cell.seconds) for cell in report.cells] == [6, 6]
    assert report["one"].values == {"answer": 42.0}
    told = report_dict(report)
    assert json.loads(json.dumps(told)) == told
    assert told["machine"]["clock"] == "cpu"
    assert any("ratio" in line for line in report_lines(report))


def test_rates_ratios_and_spread_follow_from_the_seconds():
    slow, fast = CellResult("slow", (4.0, 8.0, 6.0), {"audio_s": 12.0}), CellResult("fast", (2.0, 2.0, 2.0))
    report = BenchReport("x", BenchSettings(), {}, (slow, fast))
    assert slow.median == 6.0
    assert slow.rate("audio_s") == 2.0
    assert slow.spread == 2.0
    assert report.ratio("slow", "fast") == statistics.median((2.0, 4.0, 3.0))


def test_peak_memory_counts_what_is_held_at_a_time():
    size = 1000 * 1000 * 4

    def call() -> None:
        first = torch.zeros(1000, 1000)
        second = first + 1
        del first
        second.exp()

    assert size * 2 <= peak_memory(call) <= size * 2.1


def test_the_training_batch_is_the_one_that_was_measured():
    sizes = sizes_of("tiny")
    conversations = make_conversations(sizes)
    batch = pack(conversations, build_model(sizes).geometry)
    assert int(batch.lengths.sum()) == 446
    assert 4 * int(batch.lengths.max()) == 592
    assert int(batch.reply_lengths.sum()) * sizes.group_size == 620
    assert int((batch.text_labels != IGNORE).sum()) == 136
    assert batch.seconds == pytest.approx(39.6, abs=0.2)


@pytest.mark.parametrize("name", ["small", "qwen0.6b", "qwen8b"])
def test_sizes_are_those_of_the_models(name):
    with torch.device("meta"):
        counts = {slot: sum(p.numel() for p in part.parameters()) for slot, part in _parts(name)}
    expected = {
        "small": {"backbone": 57.9e6, "head": 21.7e6},
        "qwen0.6b": {"backbone": 0.596e9, "encoder": 0.64e9},
        "qwen8b": {"backbone": 8.19e9},
    }[name]
    assert {slot: counts[slot] for slot in expected} == pytest.approx(expected, rel=0.02)


def _parts(name: str) -> list[tuple[str, torch.nn.Module]]:
    return list(build_model(CONFIGS[name], device="meta").named_children())


def test_words_are_tokens():
    tokenizer = WordTokenizer(100)
    ids = tokenizer.encode("<|im_start|>user\nhow are you<|im_end|>\n")
    assert len(ids) == 8
    assert max(ids) < 100
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == ids[-2]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["trian"], "no benchmark 'trian'. Did you mean 'train'?"),
        (["train", "--config", "huge"], "no configuration 'huge'"),
        (["train", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["train", "--impl", "mine"], "--impl takes name=module:Class"),
        (["train", "--impl", "mine=nowhere_lab:Mine"], "no module 'nowhere_lab'"),
        (["train", "--impl", "mine=json:Mine"], "json has no class 'Mine'"),
        (["train", "--json", "/nowhere/at/all.json"], "no folder /nowhere/at"),
    ],
)
def test_a_wrong_call_is_told_in_a_line(words, text, capsys):
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_told(capsys):
    assert main(["bench", "train", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_every_listed_benchmark_is_there():
    for name in BENCHMARKS:
        assert find_benchmark(name).name == name


def test_a_file_that_is_no_benchmark_is_refused():
    with pytest.raises(ValueError, match="has no BaseBenchmark"):
        find_benchmark("base")


class HalfStep:
    """An implementation of one's own with the methods that the benchmark of training calls."""

    def build(self, sizes, device):
        self.weight = torch.zeros(3, device=device, requires_grad=True)

    def train_batch(self, conversations):
        return torch.tensor([each.seconds for each in conversations])

    def train_step(self, batch):
        return float(batch.sum())


def test_another_implementation_is_timed_in_the_same_run(tmp_path, capsys):
    file = tmp_path / "train.json"
    words = ["--impl", f"half={__name__}:HalfStep", "--rounds", "1", "--json", str(file)]
    assert load_implementation(words[1])[0] == "half"
    assert main(["bench", "train", *words]) == 0
    told = json.loads(file.read_text())
    assert "half" in [cell["name"] for cell in told["cells"]]
    assert all(cell["median_s"] > 0 and cell["rates"]["audio_s/s"] > 0 for cell in told["cells"])
    assert "half" in capsys.readouterr().out
