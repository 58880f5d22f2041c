"""The swap matrix: every part of `fac list` is in it, a broken part is red, a refusal is told, parts go together."""

import json

import pytest
import torch

from fac_lightning.cli import main
from fac_lightning.cli.list_command import parts
from fac_lightning.cli.matrix_command import ROOMS, missing_parts
from fac_lightning.cli.matrix_trial import MatrixTrials
from fac_lightning.heads import ParallelHead
from fac_lightning.testing.matrix import SLOTS, PartCatalogue, TrialResult, matrix_page, refused_pairs


class StandingHead(ParallelHead):
    """Learns nothing: its loss cannot fall."""

    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        found = super().forward(hidden.detach() * 0, labels, reply_lengths, text_embeds)
        return type(found)(found.logprobs.detach() + 0 * hidden.sum(), found.correct, found.mask)


class ForgetfulHead(ParallelHead):
    """Its state is not in its weights, so a resumed run is another one."""

    def __init__(self, dim, group_size, codebook_size, num_codebooks=1):
        super().__init__(dim, group_size, codebook_size, num_codebooks)
        self.calls = 0

    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        self.calls += self.training
        return super().forward(hidden * (1 + self.calls), labels, reply_lengths, text_embeds)


@pytest.fixture
def catalogue():
    return PartCatalogue.load()


@pytest.fixture
def trials(catalogue, tmp_path):
    made = MatrixTrials(catalogue, tmp_path)
    made.prepare()
    return made


def first(catalogue):
    return {slot: names[0] for slot, names in catalogue.choices().items()}


def test_every_part_of_fac_list_is_combined_or_left_out_with_a_reason(catalogue):
    assert missing_parts(catalogue) == []
    listed = {path for room in ROOMS for path, _ in parts(room)}
    assert set(catalogue.left_out) <= listed, "left_out names a part that is gone"
    assert not catalogue.targets() & set(catalogue.left_out)
    sizes = {slot: len(names) for slot, names in catalogue.choices().items()}
    assert sizes["tokenizer"] >= 8
    assert sizes["feature_adapter"] >= 6
    assert sizes["head"] >= 5
    assert sizes["backbone"] >= 6
    assert sizes["encoder"] >= 5


def test_a_part_without_tiny_settings_is_told(catalogue, monkeypatch, capsys):
    del catalogue.slots["head"]["ParallelHead"]
    monkeypatch.setattr(PartCatalogue, "load", classmethod(lambda cls, path=None: catalogue))
    assert main(["matrix"]) == 2
    assert (
        "parts without tiny settings in testing/matrix.yaml: fac_lightning.heads.ParallelHead"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("StandingHead", "expected speech_loss to fall"),
        ("ForgetfulHead", "expected the same weights when it goes on from its"),
    ],
)
def test_a_broken_part_is_red(trials, name, reason):
    node = dict(trials.catalogue.slots["head"]["ParallelHead"], _target_=f"test_matrix.{name}")
    trials.catalogue.slots["head"]["Broken"] = node
    result = trials.run({**first(trials.catalogue), "head": "Broken"}, 0)
    assert result.outcome == "red"
    assert reason in result.reason


def test_one_combination_does_all_that_is_asked(trials, catalogue):
    result = trials.run(first(catalogue), 0)
    assert result.outcome == "green", result.reason
    assert len(result.losses) == 3
    assert set(result.modes) >= {"S2M", "S2T", "T2M", "T2T", "STC", "SAC", "SUC"}
    assert not list(trials.folder.glob("*-0")), "what worked is cleared away"


def test_rates_become_groups(trials, catalogue):
    sizes = trials.sizes({**first(catalogue), "tokenizer": "MimiTokenizer"})
    assert (sizes["group_size"], sizes["feature_group_size"]) == (3, 12), "12.5 / 3 = 50 / 12: nearer to 5 Hz than 6.25"
    sizes = trials.sizes({**first(catalogue), "tokenizer": "EncodecTokenizer"})
    assert (sizes["group_size"], sizes["feature_group_size"]) == (15, 10), "75 / 15 and 50 / 10 are 5 Hz"


def test_what_parts_refuse_is_found_before_anything_is_trained(trials, catalogue):
    choices = {slot: names[:1] for slot, names in catalogue.choices().items()}
    choices |= {"tokenizer": ["FSQTokenizer", "EncodecTokenizer"], "head": ["RefinedHead", "FunAudioHead"]}
    found = refused_pairs(choices, trials.refusal)
    assert list(found) == [(("tokenizer", "EncodecTokenizer"), ("head", "FunAudioHead"))]
    assert "num_codebooks" in next(iter(found.values()))
    with pytest.raises(ValueError, match="FunAudioHead does not go with the first part of every other slot"):
        refused_pairs({**choices, "tokenizer": choices["tokenizer"][::-1]}, trials.refusal)


CHOICES = {slot: [f"{slot}-{i}" for i in range(2 if slot in ("head", "fusion") else 1)] for slot in SLOTS}


def trial(head, fusion, outcome, reason=""):
    chosen = {slot: names[0] for slot, names in CHOICES.items()}
    return TrialResult({**chosen, "head": f"head-{head}", "fusion": f"fusion-{fusion}"}, outcome, reason)


def test_the_page_says_what_became_of_each_pair():
    never = {(("fusion", "fusion-1"), ("head", "head-1")): "it cannot"}
    page = matrix_page(
        CHOICES, never, [trial(0, 0, "green"), trial(1, 0, "red", "it broke")], "fac matrix", {"a.B": "why"}
    )
    table = page.text.split("## fusion and head")[1].split("##")[0]
    assert "| fusion-0 | ● | ✕ |" in table
    assert "| fusion-1 | · | ○ |" in table
    assert "fusion-1 with head-1: it cannot" in page.text
    assert "red: it broke" in page.text
    assert "- `a.B`: why" in page.text
    assert (
        page.counts == {"green": 21 - 1 + 1 - 1 + 1, "red": 6, "refused": 1, "untried": 6}
        or sum(page.counts.values()) == 34
    )


def test_results_are_kept_and_not_made_again(tmp_path, capsys, monkeypatch):
    ran = []

    def run(self, chosen, number):
        ran.append(chosen)
        return TrialResult(chosen, "red" if chosen["head"] == "ParallelHead" else "green", "x", 1.0)

    monkeypatch.setattr(MatrixTrials, "run", run)
    monkeypatch.setattr(MatrixTrials, "refusal", lambda self, chosen: None)
    words = ["matrix", "--work", str(tmp_path / "work"), "--with", "ParallelHead", "--page", str(tmp_path / "page.md")]
    assert main(words) == 1
    count = len(ran)
    assert all(chosen["head"] == "ParallelHead" for chosen in ran)
    assert len({chosen["tokenizer"] for chosen in ran}) >= 8
    assert "red: " in capsys.readouterr().out
    assert "`fac matrix --with ParallelHead`" in (tmp_path / "page.md").read_text()
    assert main(words) == 1
    assert len(ran) == count
    assert f"{count} tried before" in capsys.readouterr().out
    lines = (tmp_path / "work" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["chosen"] for line in lines] == ran


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--with", "NoPart"], "there is no part 'NoPart'"),
        (["--page", "nowhere/page.md"], "there is no folder nowhere"),
        (["--parts", "nowhere.yaml"], "there is no file nowhere.yaml"),
    ],
)
def test_wrong_calls_are_one_line(words, told, capsys, monkeypatch):
    monkeypatch.setattr(MatrixTrials, "refusal", lambda self, chosen: None)
    assert main(["matrix", *words]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "mouth: {Part: {_target_: my.Part}}",
            "there is no slot 'mouth'; slots are tokenizer, encoder, feature_adapter,",
        ),
        ("head: {Part: {dim: 4}}", "head must name parts, each a node with _target_ and its arguments"),
        ("head: {DepthHead: {_target_: my.Part}}", r"has a part 'DepthHead' \(head\); give yours another name"),
        ("head: {Part: null}", "head must name parts, each a node with _target_"),
        ("", "must name parts by slot: tokenizer, encoder,"),
    ],
)
def test_what_a_file_of_own_parts_gets_wrong_is_told(tmp_path, text, told):
    (tmp_path / "parts.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        PartCatalogue.load(tmp_path / "parts.yaml")


def test_every_part_goes_with_some_others(capsys):
    """The covering subset: every part in a combination that trains, resumes, answers and is loaded again."""
    before = torch.get_num_threads()
    code = main(["matrix"])
    shown = capsys.readouterr().out
    assert torch.get_num_threads() == before
    assert code == 0, shown
    assert " 0 red" in shown
