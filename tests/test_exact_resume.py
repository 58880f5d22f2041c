"""A run that was interrupted is the run that was not: the same batches, losses and weights, to the bit."""

import json
import logging
import multiprocessing
import os
import signal
from itertools import islice

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from fac_lightning.callbacks import RandomState
from fac_lightning.data import DialogueSharding, SpeechChatDataModule, TextTokenizerTraining
from fac_lightning.data.stream import StreamPlace
from fac_lightning.data.stream_progress import StreamProgress
from fac_lightning.replies import FrameEnd
from fac_lightning.testing import FrameEncoder
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.types import SpeechGeometry
from fac_lightning.weights import CheckpointError
from tokenize_parts import LoggedTokenizer

RATE, HOP = 8000, 320
GEOMETRY = SpeechGeometry(RATE, 5 * HOP, 5, 1, 50, 400)
STEPS = 7
LINES = 2  # of a step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for name in ("a", "b"):
        make_dialogues(folder / name, 25, rounds=2, spoken=False, seed=ord(name))
    DialogueSharding(str(folder / "b"), str(folder / "shards"), shard_size=4, codes=None).run()
    TextTokenizerTraining([str(folder / "a")], 330, str(folder / "tokenizer")).run()
    make_dialogues(folder / "spoken", 25, sample_rate=RATE, rounds=2)
    make = lambda: LoggedTokenizer("/dev/null")  # noqa: E731
    for name, audio in (("heard", None), ("both", "wav")):
        DialogueSharding(str(folder / "spoken"), str(folder / name), 4, audio, make, features=encoder).run()
    return folder


def encoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return FrameEncoder(RATE, HOP)


@pytest.fixture
def build(world):
    def build(**changes):
        arguments = {
            "train": {"folder": str(world / "a"), "shards": str(world / "shards")},
            "text_tokenizer": str(world / "tokenizer"),
            "modes": {"T2T": 1.0},
            "capacity": 160,
            "look_ahead": 3,
            "virtual_epoch": 3,
        }
        module = SpeechChatDataModule(**{**arguments, **changes})
        module.setup("fit")
        return module

    return build


class Dropped(lightning.LightningModule):
    """Dropout between an embedding and its inverse; writes down what it was given."""

    def __init__(self, log, kill_at=None):
        super().__init__()
        self.embed, self.log_file, self.kill_at = torch.nn.Embedding(400, 8), log, kill_at

    def training_step(self, batch, index):
        if index == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        hidden = torch.nn.functional.dropout(self.embed(batch.text_ids), 0.3)
        loss = (hidden @ self.embed.weight.T).logsumexp(-1).sum() / batch.text_token_total
        with open(f"{self.log_file}.{self.global_rank}", "a", encoding="utf-8") as file:
            file.write(json.dumps([index, batch.ids, batch.sources, float(loss.detach()).hex()]) + "\n")
        return loss

    def on_train_end(self):
        if self.global_rank == 0:
            torch.save(self.embed.weight.detach().clone(), f"{self.log_file}.weights")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Hears(Dropped):
    """Its loss is of stored features too; the encoder that made them never runs."""

    def __init__(self, log, kill_at=None):
        super().__init__(log, kill_at)
        self.encoder, self.proj = encoder().requires_grad_(False), torch.nn.Linear(8, 8)

    def training_step(self, batch, index):
        assert batch.audio.audio.shape[0] == 0
        heard = torch.nn.functional.dropout(batch.heard.features, 0.3)
        return super().training_step(batch, index) + self.tell(index, self.proj(heard).square().sum())

    def tell(self, index, loss):
        with open(f"{self.log_file}.heard", "a", encoding="utf-8") as file:
            file.write(json.dumps([index, float(loss.detach()).hex()]) + "\n")
        return loss

    def on_train_end(self):
        torch.save(torch.cat([weight.detach().flatten() for weight in self.parameters()]), f"{self.log_file}.weights")


class SaveInTheMidst(Callback):
    """Saves behind the first line of a step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 4:
            trainer.save_checkpoint(pl_module.log_file.parent / "midst.ckpt")


def train(log, module, steps=STEPS, start=None, ranks=1, kill_at=None, callbacks=(), lines=LINES, kind=Dropped):
    log.parent.mkdir(exist_ok=True)
    lightning.seed_everything(3, verbose=False)
    many = {"strategy": lightning.pytorch.strategies.DDPStrategy(start_method="fork", process_group_backend="gloo")}
    keep = ModelCheckpoint(log.parent, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=ranks, max_steps=steps, accumulate_grad_batches=lines, logger=False,
        callbacks=[RandomState(), keep, *callbacks], enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=log.parent, **(many if ranks > 1 else {}),
    )  # fmt: skip
    trainer.fit(kind(log, kill_at), module, ckpt_path=start and str(start), weights_only=False)


def told(*logs, rank=0):
    """What was written down of each batch; a later run writes over what an earlier one did."""
    batches = {}
    for log in logs:
        for line in (log.parent / f"{log.name}.{rank}").read_text().splitlines():
            index, *given = json.loads(line)
            batches[index] = given
    return [batches[index] for index in sorted(batches)]


def heard(*logs):
    """Losses of the features of each batch."""
    lines = [json.loads(line) for log in logs for line in (log.parent / "log.heard").read_text().splitlines()]
    return [lines for _, lines in sorted(dict(lines).items())]


def sources(log):
    """Of which there are dialogues."""
    return {name for _, names, _ in told(log) for name in names}


def weights(log):
    return torch.load(log.parent / f"{log.name}.weights")


def apart(work):
    """Run in a process of its own: Lightning's launcher leaves environment variables behind."""

    def run():
        torch.set_num_threads(1)
        work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
    return process.exitcode


@pytest.mark.filterwarnings("ignore:The dirpath has changed|Be aware that when using .ckpt_path.")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_interruptions_change_no_bit(build, tmp_path, num_workers):
    whole, first, second, third = (tmp_path / name / "log" for name in ("whole", "first", "second", "third"))
    train(whole, build(num_workers=num_workers))
    train(first, build(num_workers=num_workers), 2)
    train(second, build(), 5, first.parent / "step=2.ckpt")
    train(third, build(num_workers=num_workers), STEPS, second.parent / "step=5.ckpt")
    assert len(told(whole)) == STEPS * LINES
    assert sources(whole) == {"folder", "shards"}
    assert told(first, second, third) == told(whole)
    assert len(told(third)) == 2 * LINES, "it goes on, it does not begin anew"
    assert torch.equal(weights(third), weights(whole))


@pytest.mark.filterwarnings("ignore:The dirpath has changed|Be aware that when using .ckpt_path.")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stored_features_go_on_to_the_bit(build, world, tmp_path, num_workers):
    data = {
        "train": str(world / "heard"),
        "features": True,
        "modes": {"S2M": 1.0, "S2T": 1.0},
        "geometry": GEOMETRY,
        "tokenizer": LoggedTokenizer("/dev/null"),
    }
    whole, first, second = (tmp_path / name / "log" for name in ("whole", "first", "second"))
    train(whole, build(**data), kind=Hears)
    train(first, build(**data, num_workers=num_workers), 3, kind=Hears)
    train(second, build(**data, num_workers=num_workers), STEPS, first.parent / "step=3.ckpt", kind=Hears)
    assert told(first, second) == told(whole)
    assert len(told(second)) == 4 * LINES
    assert heard(first, second) == heard(whole)
    assert len(set(heard(whole))) == STEPS * LINES
    assert torch.equal(weights(second), weights(whole))


def test_features_instead_of_sound_are_other_data(build, world):
    data = {"train": str(world / "both"), "modes": {"S2T": 1.0}, "geometry": GEOMETRY}
    with pytest.raises(CheckpointError, match=r"cannot go on exactly \(features: None -> True\)"):
        build(**data, features=True).load_state_dict(build(**data).state_dict())


@pytest.mark.filterwarnings("ignore:The dirpath has changed|Be aware that when using .ckpt_path.")
def test_a_checkpoint_in_the_midst_of_a_step_begins_the_step_anew(build, tmp_path):
    whole, resumed = tmp_path / "whole" / "log", tmp_path / "resumed" / "log"
    train(whole, build(), callbacks=[SaveInTheMidst()])
    train(resumed, build(), start=whole.parent / "midst.ckpt")
    assert told(resumed) == told(whole)[4:]
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.filterwarnings("ignore:The dirpath has changed|Be aware that when using .ckpt_path.")
def test_a_killed_run_loses_one_interval_at_most(build, tmp_path):
    whole, killed, resumed = (tmp_path / name / "log" for name in ("whole", "killed", "resumed"))
    train(whole, build())
    kill_at = int(torch.randint(3, 2 * STEPS, (), generator=torch.Generator().manual_seed(5)))
    assert apart(lambda: train(killed, build(), kill_at=kill_at)) == -signal.SIGKILL
    saved = max(int(path.stem.split("=")[1]) for path in killed.parent.glob("*.ckpt"))
    assert saved >= kill_at // LINES - 1
    train(resumed, build(), start=killed.parent / f"step={saved}.ckpt")
    assert told(killed, resumed) == told(whole)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.filterwarnings("ignore:The dirpath has changed|Be aware that when using .ckpt_path.")
def test_two_processes_go_on_twice_each_with_its_own_lines_and_numbers(build, tmp_path):
    whole, first, second, third = (tmp_path / name / "log" for name in ("whole", "first", "second", "third"))

    def work():
        train(whole, build(), ranks=2)
        train(first, build(), 3, ranks=2)
        train(second, build(num_workers=2), 5, first.parent / "step=3.ckpt", ranks=2)
        train(third, build(), STEPS, second.parent / "step=5.ckpt", ranks=2)

    assert apart(work) == 0
    for rank in range(2):
        assert told(first, second, third, rank=rank) == told(whole, rank=rank)
    rows = [[name for ids, *_ in told(whole, rank=rank) for name in ids] for rank in range(2)]
    assert rows[0] != rows[1]
    assert torch.equal(weights(third), weights(whole))


def flat(windows):
    return [line.ids for window in windows for line in window]


def test_a_virtual_epoch_leaves_no_line_open_and_no_row_out(build, world):
    module = build(train=str(world / "a"))
    stream = module._stream(2)
    windows = list(islice(stream.windows(), 9))
    assert [(w.virtual_epoch, w.number) for w in windows] == [(v, n) for v in range(3) for n in range(3)]
    places = [sorted(row.place for w in windows[i : i + 3] for line in w.lines for row in line) for i in (0, 3, 6)]
    joined = [place for part in places for place in part]
    assert joined == list(range(len(joined))), "what one virtual epoch does not give out, the next one does"
    whole = flat(islice(build(train=str(world / "a"))._stream(2), 9))
    later = StreamPlace(windows[5].virtual_epoch, 2, *windows[5].begin)
    assert flat(islice(module._stream(2, start=later), 4)) == whole[10:]


def test_going_on_plans_no_more_than_a_virtual_epoch_and_reads_nothing_of_it(build, world, monkeypatch):
    module = build(train=str(world / "a"), virtual_epoch=50)
    stream = module._stream(1)
    far = next(islice(stream.windows(), 130, None))
    goes_on = module._stream(1, start=StreamPlace(far.virtual_epoch, far.number, *far.begin))
    planned = []
    plans = type(goes_on).plans
    monkeypatch.setattr(type(goes_on), "plans", lambda self, n: (planned.append(p) or p for p in plans(self, n)))
    read = []
    load = type(goes_on).load
    monkeypatch.setattr(type(goes_on), "load", lambda self, plan: read.append(plan) or load(self, plan))
    (line,) = next(iter(goes_on))
    assert len(read) == len(line.ids) == len(far.lines[0])
    assert planned[0].place <= far.begin[0] + 1
    assert 30 < len(planned) / len(read) < 50, "30 lines are planned again, whatever came before"


@pytest.mark.parametrize("ranks", [2, 3])
def test_other_processes_go_on_behind_all_that_was_seen(build, world, caplog, ranks):
    data = {"train": str(world / "a"), "capacity": 100, "look_ahead": 2, "virtual_epoch": None}
    progress, module = StreamProgress(), build(**data)
    stream = module._stream(1, start=progress.begin(0, 1))
    planned = list(islice(progress.follow(stream.windows()), 4))
    seen = {row.row for window in planned for line in window.lines for row in line}
    assert len(seen) < 20, "the pass is not over"
    later = []
    for rank in range(ranks):
        other = StreamProgress()
        with caplog.at_level(logging.WARNING):
            other.restore(progress.state(4, 1, {}), rank, ranks, 1)
        assert other.start.virtual_epoch == 1
        rest = module._stream(1, rank, ranks, other.start)
        later += [plan.row for plan in islice(rest.plans(other.start.draw), 30) if plan.place < 25]
    assert len(later) == len(set(later)) >= 5
    assert not seen & set(later)
    assert (
        f"of 1 process(es) with 1 line(s) a step, this run has {ranks} with 1: it goes on with virtual" in caplog.text
    )


@pytest.mark.filterwarnings("ignore:The dirpath has changed|Be aware that when using .ckpt_path.")
@pytest.mark.parametrize(("then", "steps", "now"), [(2, 3, 4), (3, 3, 2), (2, 2, 4)])
def test_other_lines_a_step_go_on_behind_what_was_seen_in_whole_steps(build, world, tmp_path, caplog, then, steps, now):
    data = {"train": str(world / "a"), "capacity": 100, "virtual_epoch": None}
    before, whole, first, second = (tmp_path / name / "log" for name in ("before", "whole", "first", "second"))
    train(before, build(**data), steps, lines=then)
    start = before.parent / f"step={steps}.ckpt"
    with caplog.at_level(logging.WARNING):
        train(whole, build(**data), steps + 3, start, lines=now)
    assert f"{then} line(s) a step, this run has 1 with {now}: it goes on with virtual epoch 1" in caplog.text
    train(first, build(**data), steps + 1, start, lines=now)
    train(second, build(**data), steps + 3, first.parent / f"step={steps + 1}.ckpt", lines=now)
    assert len(told(whole)) == 3 * now
    assert told(first, second) == told(whole)
    assert torch.equal(weights(second), weights(whole))
    seen = {name for names, *_ in told(before) for name in names}
    later = [name for names, *_ in told(whole)[:now] for name in names]
    assert seen.isdisjoint(later), "nothing comes again in this pass"


@pytest.mark.filterwarnings("ignore:The dirpath has changed|Be aware that when using .ckpt_path.")
def test_other_lines_a_step_behind_a_part_of_a_step_miss_nothing(build, tmp_path):
    before, midst, behind = (tmp_path / name / "log" for name in ("before", "midst", "behind"))
    train(before, build(), callbacks=[SaveInTheMidst()])
    train(midst, build(), start=before.parent / "midst.ckpt", lines=1)
    train(behind, build(), start=before.parent / "step=2.ckpt", lines=1)
    assert len(told(midst)) == STEPS - 2
    assert [ids for ids, *_ in told(midst)] == [ids for ids, *_ in told(behind)]


def test_an_epoch_that_ends_within_a_step_is_told(build, caplog):
    quiet = {"logger": False, "enable_checkpointing": False, "max_steps": 1, "accumulate_grad_batches": 2}
    for batches, told in ((4, False), (5, True)):
        module = build()
        module.trainer = lightning.Trainer(accelerator="cpu", limit_train_batches=batches, **quiet)
        with caplog.at_level(logging.WARNING):
            module.train_dataloader()
        assert ("limit_train_batches 5 is no multiple of trainer.accumulate_grad_batches 2" in caplog.text) == told


def test_budgets_are_part_of_the_data(build):
    state = build().state_dict()
    for changed, told in (
        ({"capacity": 170}, r"budget: Budget\(positions=160, .*\) -> Budget\(positions=170, "),
        ({"look_ahead": 4}, "look_ahead: 3 -> 4"),
        ({"virtual_epoch": 4}, "virtual_epoch: 3 -> 4"),
    ):
        with pytest.raises(CheckpointError, match=rf"cannot go on exactly \({told}"):
            build(**changed).load_state_dict(state)


class Late(FrameEnd):
    """A rule of one's own that tells nothing of itself."""

    def __init__(self, late):
        super().__init__()
        object.__setattr__(self, "late", late)


def test_a_rule_of_ones_own_goes_on_and_its_settings_count(build):
    state = build(reply=Late(2)).state_dict()
    build(reply=Late(2)).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"\(reply: test_exact_resume\.Late\(late=2\) -> \S+Late\(late=3\)\)"):
        build(reply=Late(3)).load_state_dict(state)


def test_other_data_are_refused_with_what_differs(build, world, tmp_path):
    state = build().state_dict()
    changed = build(train={"folder": str(world / "a"), "shards": str(world / "b")}, seed=1)
    with pytest.raises(CheckpointError) as refused:
        changed.load_state_dict(state)
    text = str(refused.value)
    assert "\n" not in text
    assert "seed: 0 -> 1" in text
    assert "content of shards: " in text
    assert "content of folder" not in text
    json.dumps(state)  # a handful of integers, and settings to be read
    assert set(state["stream"]) == {
        "virtual_epoch", "windows", "batches", "ranks", "accumulate_grad_batches", "settings", "hash",
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"written by an earlier version, .* begin a run from its weights"):
        build().load_state_dict({"stream": {"seed": 0}})
    with pytest.raises(ValueError, match="virtual_epoch must be at least 1, got 0; it counts optimizer steps"):
        build(virtual_epoch=0)
    with pytest.raises(ValueError, match="resume_changed must be 'refuse' or 'continue', got 'ask'"):
        build(resume_changed="ask")
