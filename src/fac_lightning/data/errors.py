"""Data that cannot be used, said in one way: code, what, where, the value seen, the rule, and what to do."""

from __future__ import annotations

__all__ = ["BadData"]


class BadData(ValueError):
    """One recording or record that must not be trained on.

    The text is ``<code>: <what> in <where>: got <value>, want <rule>. <what to do>``.

    Args:
        code: Such as ``FAC-A08``; ``docs/data.md`` lists them.
        what: What is wrong.
        where: File, with line or id and field.
        value: What stands there.
        rule: What would be right.
        advice: What to do.
    """

    def __init__(self, code: str, what: str, where: str, value: object, rule: str, advice: str) -> None:
        super().__init__(code, what, where, value, rule, advice)  # all of them, so that it travels between processes
        self.code, self.what, self.where, self.value, self.rule, self.advice = code, what, where, value, rule, advice

    def __str__(self) -> str:
        """The one line."""
        return f"{self.code}: {self.what} in {self.where}: got {self.value}, want {self.rule}. {self.advice}"

    def inside(self, place: str) -> BadData:
        """The same, with where its own place was met before it: ``train/cuts.jsonl, line 3, cut 'a', turn 0``."""
        where = f"{place}, {self.where}"
        return BadData(self.code, self.what, where, self.value, self.rule, self.advice)
