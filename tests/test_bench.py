"""fac bench: what is measured, how it is shown, and that what is measured is right. No time is judged here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fac_lightning.bench import (
    CONFIGS,
    Benchmark,
    BenchReport,
    BenchSettings,
    Cell,
    CellResult,
    Conversation,
    DenseEncoder,
    OurImplementation,
    Trial,
    WordTokenizer,
    build_encoder,
    build_model,
    count_flops,
    find_benchmark,
    generate,
    load_implementation,
    make_conversations,
    pack,
    peak_memory,
    report_dict,
    report_lines,
    report_table,
    run_benchmark,
    serve,
    sizes_of,
)
from fac_lightning.bench.encode import clips_of, growth
from fac_lightning.bench.headline import predict
from fac_lightning.bench.plain import Waste, padded_line, plain_loss
from fac_lightning.bench.runner import _Process
from fac_lightning.cli.app import main
from fac_lightning.cli.bench_command import BENCHMARKS
from fac_lightning.estimate import MACHINES
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


def test_a_table_shows_plain_numbers_and_a_spread_where_there_is_one():
    def columns(rounds: int) -> dict[str, str]:
        cell = CellResult("one", (18.43216, 18.53216)[:rounds], {"audio_s": 1e7}, values={"fill": 0.97753})
        report = BenchReport("x", BenchSettings(rounds=rounds), {"torch": "2"}, (cell,), {"rate": 332_400.7})
        table = report_table(report)
        assert report_lines(report) == ["rate: 332,401", f"torch 2; medians over {rounds} round(s) of 1"]
        return {str(column.header): "".join(map(str, column.cells)) for column in table.columns}

    once = columns(1)
    assert once == {"cell": "one", "ms": "18,432", "x one": "1.00", "audio_s/s": "542,530", "fill": "0.9775"}
    assert columns(2)["IQR"] == "50"


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


def test_training_tells_what_each_waste_costs_beside_another_implementation(tmp_path, capsys):
    file = tmp_path / "train.json"
    words = ["--impl", f"half={__name__}:HalfStep", "--rounds", "1", "--json", str(file)]
    assert load_implementation(words[1])[0] == "half"
    assert main(["bench", "train", *words]) == 0
    told = json.loads(file.read_text())
    cells = {cell["name"]: cell for cell in told["cells"]}
    assert "half" in cells
    assert "half" in capsys.readouterr().out
    assert all(cell["median_s"] > 0 for cell in cells.values())
    assert all(cell["rates"]["audio_s/s"] > 0 for name, cell in cells.items() if name != "one large product")
    for name in ("head on all positions", "logits of all rows", "padded", "k=1, no head"):
        assert cells["ours"]["flop"] < cells[name]["flop"]
    assert cells["plain: all three"]["flop"] > 2.5 * cells["ours"]["flop"]
    assert cells["plain: all three"]["memory_bytes"] > 2 * cells["ours"]["memory_bytes"]
    assert cells["k=1, no head"]["work"]["positions"] > 2.5 * cells["padded"]["work"]["positions"]
    assert set(told["findings"]) >= {"plain / ours, time", "plain / ours, FLOPs"}


@pytest.fixture(scope="module")
def tiny() -> tuple[OurImplementation, list[Conversation]]:
    ours = OurImplementation()
    ours.build(sizes_of("tiny"), "cpu")
    return ours, make_conversations(sizes_of("tiny"))


@pytest.mark.parametrize("waste", [Waste(all_rows=True), Waste(padding=True), Waste(padding=True, all_rows=True)])
def test_wasteful_steps_have_our_loss(tiny, waste):
    ours, conversations = tiny
    batch = ours.train_batch(conversations)
    wanted = ours.task.loss(ours.task(batch), batch.text_token_total, batch.speech_token_total)
    line = padded_line(conversations, ours.model.geometry) if waste.padding else batch
    assert torch.allclose(plain_loss(ours, line, waste), wanted, rtol=1e-5)


def test_the_head_on_all_positions_says_the_same_labels(tiny):
    ours, conversations = tiny
    batch = ours.train_batch(conversations)
    wanted = ours.task.loss(ours.task(batch), batch.text_token_total, batch.speech_token_total)
    found = plain_loss(ours, batch, Waste(whole_head=True))
    assert torch.allclose(found, wanted, rtol=1e-2)  # its context is longer, so it is another number
    assert not torch.equal(found, wanted)


def test_flops_know_attention_and_products_in_place():
    matrix, one, two = torch.zeros(3, 5), torch.ones(3, 4), torch.ones(4, 5)
    assert count_flops(lambda: matrix.addmm_(one, two)) == 2 * 3 * 4 * 5
    query = torch.randn(1, 2, 6, 8, requires_grad=True)
    call = lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)  # noqa: E731
    assert count_flops(call) == 2 * 2 * (2 * 6 * 6 * 8)
    assert count_flops(lambda: call().sum().backward()) == 7 * 2 * (2 * 6 * 6 * 8)


def test_a_small_training_step_computes_no_more_than_it_must():
    """Official: 462 GFLOP by the same counter (goal: 170)."""
    ours = OurImplementation()
    ours.build(sizes_of("small"), "cpu")
    batch = ours.train_batch(make_conversations(sizes_of("small")))
    with FlopCounterMode(display=False) as counter:
        ours.task.loss(ours.task(batch), batch.text_token_total, batch.speech_token_total).backward()
    assert counter.get_total_flops() == 162_239_391_744


def test_a_cell_may_have_a_process_of_its_own():
    settings = BenchSettings(rounds=1, reps=2, isolate=True)
    process = _Process("loss", "ours", settings)
    try:
        assert len(process.turn()) == 2
        result = process.result()
    finally:
        process.close()
    assert result.name == "ours"
    assert result.resident > result.memory > 0
    assert not process.process.is_alive()


def test_encoding_is_linear_in_the_audio_and_both_readings_agree():
    report = run_benchmark(find_benchmark("encode"), BenchSettings(rounds=1))
    assert report.findings["exponent of FLOPs, ours"] < 1.1 < 1.2 < report.findings["exponent of FLOPs, dense"]
    ours, dense = build_encoder(sizes_of("tiny")), build_encoder(sizes_of("tiny"), DenseEncoder)
    dense.load_state_dict(ours.state_dict())
    clips = clips_of(9.0)
    found, wanted = (each(clips.audio, clips.lengths).features for each in (ours, dense))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_dense_encoder_attends_over_all_chunks_also_where_ours_takes_portions(monkeypatch):
    monkeypatch.setattr("fac_lightning.encoders.fun_audio.CPU_BYTES", 1)
    clips, flops = clips_of(9.0), []
    for encoder in (build_encoder(sizes_of("tiny")), build_encoder(sizes_of("tiny"), DenseEncoder)):
        lengths = []
        encoder.layers[0].register_forward_pre_hook(lambda _, given, seen=lengths: seen.append(given[1].length))
        with torch.no_grad():
            flops.append(count_flops(lambda encoder=encoder: encoder(clips.audio, clips.lengths)))
        assert len(lengths) == (1 if isinstance(encoder, DenseEncoder) else int((clips.lengths / 32000).ceil().sum()))
    assert flops[1] > flops[0]


def test_growth_is_the_exponent():
    assert growth([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_all_ways_to_the_loss_have_its_gradients():
    report = run_benchmark(find_benchmark("loss"), BenchSettings(rounds=1))
    assert {"ours", "plain"} <= {cell.name for cell in report.cells}
    assert all(cell.values["gradient gap"] < 1e-5 for cell in report.cells)
    assert report["plain"].memory > 2 * report["ours"].memory


def test_both_merges_are_equal():
    report = run_benchmark(find_benchmark("merge"), BenchSettings(rounds=1))
    assert [cell.values["equal"] for cell in report.cells] == [1.0, 1.0]
    assert report["ours, streamed"].memory < report["load all"].memory


def test_all_ways_to_learn_pairs_have_one_loss():
    report = run_benchmark(find_benchmark("dpo"), BenchSettings(rounds=1))
    losses = [cell.values["loss"] for cell in report.cells]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    flops = [cell.flops for cell in report.cells]
    assert flops[0] == min(flops)
    assert flops[-1] == max(flops)


def test_the_headline_compares_equal_speech():
    report = run_benchmark(find_benchmark("headline"), BenchSettings(rounds=1))
    assert len({cell.work["audio_s"] for cell in report.cells}) == 1
    assert report.findings["25 Hz / 5 Hz, FLOPs"] > 1.6
    predicted = predict(report.settings, MACHINES["cpu"])
    for cell in report.cells:  # the cost model counts what the counter counts
        assert predicted.costs[cell.name].line.total_flops == pytest.approx(cell.flops, rel=0.01)


@pytest.fixture
def short(monkeypatch):
    """Answers of 4 groups, 5 of them."""
    monkeypatch.setattr(generate, "GROUPS", 4)
    monkeypatch.setattr(serve, "GROUPS", 4)
    monkeypatch.setattr(serve, "STREAMS", 5)


def test_one_answer_is_said_by_all_ways(short):
    report = run_benchmark(find_benchmark("generate"), BenchSettings(rounds=1))
    assert {cell.work["groups"] for cell in report.cells} == {4.0}
    assert all(
        cell.values["first ms"] > 0 and cell.values["p95 ms"] >= cell.values["group ms"] for cell in report.cells
    )
    assert len(report.findings) == 4


def test_answers_given_at_once_are_those_given_one_after_another(short):
    report = run_benchmark(find_benchmark("serve"), BenchSettings(rounds=1))
    assert report.findings["identical answers"] == 1
    assert report["16 at once"].work == report["one after another"].work
