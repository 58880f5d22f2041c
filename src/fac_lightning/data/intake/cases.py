"""Everything that can be wrong with data, in one table: code, what, rule, advice."""

from __future__ import annotations

from dataclasses import dataclass

from fac_lightning.data.errors import BadData

__all__ = ["CASES", "REFUSED", "WARNINGS", "Case", "bad_data"]

AGAIN = "Fetch or make it again"


@dataclass(frozen=True)
class Case:
    """One way in which data are bad."""

    what: str
    rule: str
    advice: str


CASES = {
    "FAC-A00": Case("too many bad data", "a share of max_bad_share", "Repair or remove them, or raise max_bad_share"),
    "FAC-A01": Case("missing audio file", "a file that exists and may be read", "Put it there or correct the path"),
    "FAC-A02": Case("empty audio file", "sound", AGAIN),
    "FAC-A03": Case("no sound file", "a format that libsndfile reads: wav, flac, ogg, opus, mp3 ...", AGAIN),
    "FAC-A04": Case("sound file with a broken header", "a whole header", AGAIN),
    "FAC-A05": Case("wav file cut short", "all samples that its header names", AGAIN),
    "FAC-A06": Case("damaged or cut sound file", "samples that decode to the end", AGAIN),
    "FAC-A07": Case("ogg file cut short", "a stream with its last page", AGAIN),
    "FAC-A08": Case(
        "wrong sample rate",
        "the manifest's",
        "Make the manifest again, or resample: true (--resample) to believe the files",
    ),
    "FAC-A09": Case("duration other than in the manifest", "the manifest's", "Make the manifest or the audio again"),
    "FAC-A10": Case("samples that are no numbers", "finite samples", "Repair or leave out the recording"),
    "FAC-A11": Case("silence", "sound", "Look whether the right file or channel was stored"),
    "FAC-A12": Case("clipped audio", "samples within full scale", "Record or convert it again at a lower level"),
    "FAC-A13": Case("wrong number of channels", "mono", "Choose a channel in the manifest, or store it as wanted"),
    "FAC-A14": Case("too short audio", "one group of speech at least", "Leave the turn out or merge it with another"),
    "FAC-A15": Case("too long audio", "less", "Cut the recording, or raise max_seconds (--max-seconds)"),
    "FAC-A16": Case("absurd length in the header", "a length that can be", "Do not use the file; it was not decoded"),
    "FAC-A17": Case(
        "decompression bomb", "less sound out of so few bytes", "Do not use the file, or raise max_expansion"
    ),
    "FAC-A18": Case("absurd sample rate or channels in the header", "those of speech", "Do not use the file"),
    "FAC-D01": Case("missing data", "a dialogues folder, manifest, Shar folder or sound files", "Correct the path"),
    "FAC-D02": Case("truncated last line", "a whole JSON object and a newline", "Remove the line or write it again"),
    "FAC-D03": Case("truncated gzip file", "a file that unpacks to its end", AGAIN),
    "FAC-D04": Case("blank line", "one JSON object a line", "Remove the line"),
    "FAC-D05": Case("text that is not UTF-8", "UTF-8", "Convert the file, as with iconv -t UTF-8"),
    "FAC-D06": Case("id that is there already", "ids that differ", "Rename or remove one of the two"),
    "FAC-D07": Case("bad duration", "seconds above 0", "Make the manifest again"),
    "FAC-D08": Case("cut outside its recording", "start and end inside the recording", "Make the manifest again"),
    "FAC-D09": Case(
        "turn outside its audio, or without text", "a span inside and words", "Correct the turn or leave it out"
    ),
    "FAC-D10": Case(
        "source that leaves the data",
        "files under the manifest's folder or the roots",
        "Move the audio there, or name its folder in roots (--roots)",
    ),
    "FAC-D11": Case("tar file with too few items", "one item for every cut", "Write or fetch the shard again"),
    "FAC-D12": Case("items of a tar file in another order", "the cuts' ids in order", "Write the shard again"),
    "FAC-D13": Case("tar member that is not taken", "regular files of a limited size", "Do not use the shard"),
    "FAC-D14": Case(
        "shards that do not go together", "the same shards of every field", "Fetch or write what is missing"
    ),
    "FAC-D15": Case("line that is no record", "a JSON object with an 'id'", "Make the manifest again"),
}

#: are told and counted, but do not make an item bad
WARNINGS = frozenset({"FAC-A11", "FAC-A12"})
#: what training refuses as a whole, whatever share is bad: the data are not what was asked for, or not to be trusted
REFUSED = frozenset({"FAC-D01", "FAC-D03", "FAC-D10", "FAC-D11", "FAC-D12", "FAC-D13", "FAC-D14"})


def bad_data(
    code: str,
    where: str,
    value: object,
    rule: str | None = None,
    advice: str | None = None,
    what: str | None = None,
) -> BadData:
    """What the table says of a code, with place and value; the rest too may be said in words of the case at hand.

    Args:
        code: A key of ``CASES``.
        where: File, with line or id and field.
        value: What stands there.
        rule: What would be right.
        advice: What to do.
        what: What is wrong.
    """
    case = CASES[code]
    shown = (value.strip() or repr(value)) if isinstance(value, str) else repr(value)
    shown = shown if len(shown) <= 200 else f"{shown[:197]}..."
    told = (advice or case.advice).rstrip(".") + "."
    return BadData(code, what or case.what, where, shown, rule or case.rule, told)
