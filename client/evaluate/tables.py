"""The figures of an evaluation as tables."""

from client.evaluate.report import Report
from client.evaluate.scores import Judged, Scores
from client.report_table import NONE, ReportTable, digits, milliseconds, percent

LISTED = 50
"""Replies that are listed; JSON has them all."""

COLUMNS = (
    "group",
    "quest-\nions",
    "text\nexact, %",
    "heard as\nits text, %",
    "heard as the\nanswer, %",
    "words\nheard, %",
    "in its\nvoice, %",
    "ended by\nitself, %",
    "longest ÷\nreference",
    "TTFA\np50, ms",
    "TTFA\np95, ms",
    "RTF\np50",
)
NOTE = (
    "exact: the text is the right answer. Heard as its text, as the answer: which of the set's sentences pocketsphinx "
    "hears. Words: of the text, by a bigram over those sentences, or without them by pocketsphinx's English. In its "
    "voice: nearer to its voice's example than to any other's. TTFA: all of the question sent → first sample."
)


def scores_table(report: Report) -> ReportTable:
    """A row for each group, and one for all of them where there are several."""
    found = report.scores
    rows = [scores_row(group, found[group]) for group in report.asked.groups]
    if len(rows) > 1:
        rows.append(scores_row("all", found[None]))
    return ReportTable("Replies", COLUMNS, rows, NOTE)


def scores_row(name: str, found: Scores) -> list[str]:
    """The figures of a group."""
    return [
        name,
        str(found.question_count),
        *(percent(share) for share in (found.exact, found.choice, found.answered, found.words)),
        *(percent(share) for share in (found.voice, found.ended)),
        digits(found.longest),
        milliseconds(found.ttfa.p50 if found.ttfa else None),
        milliseconds(found.ttfa.p95 if found.ttfa else None),
        digits(found.rtf.p50 if found.rtf else None),
    ]


def faults_table(report: Report) -> ReportTable:
    """The replies with something wrong, in the order of the questions."""
    wrong = [it for it in sorted(report.judged, key=lambda it: it[0].index) if it[0].failure or it[1].faults]
    unlisted = len(wrong) - LISTED
    columns = ("group", "voice", "asked", "expected", "got", "heard", "wrong")
    note = f"And {unlisted} more: --json has them." if unlisted > 0 else ""
    return ReportTable("Replies with something wrong", columns, [fault_row(it) for it in wrong[:LISTED]], note)


def fault_row(judged: Judged) -> list[str]:
    """What was asked, what was to come, what came, and what is wrong with it."""
    answer, judgement = judged
    text = answer.reply.ended.text if answer.reply else answer.failure or ""
    heard = judgement.heard if judgement.chosen is None else judgement.chosen
    expected = NONE if answer.question.answer is None else answer.question.answer
    what = "failed" if answer.reply is None else ", ".join(judgement.faults)
    return [answer.question.group, answer.voice, answer.question.asked, expected, text, heard, what]


def remarks(report: Report) -> list[str]:
    """What there is to say in sentences."""
    said = []
    if not report.voices:
        said.append("Voices were not compared: examples of two or more of the mesh's voices are needed (--voices).")
    if failed := sum(answer.reply is None for answer, _ in report.judged):
        said.append(f"{failed} of {len(report.judged)} questions got no whole reply.")
    if report.is_partial:
        said.append(f"This is partial: {len(report.judged)} of {report.asked.question_count} questions were asked.")
    return said
