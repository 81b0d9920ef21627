"""Sections of the report on the data: texts read and rejected, vocabulary, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.report.charts import histogram
from flows.report.html import (
    UNKNOWN,
    code,
    count,
    figure,
    foreign,
    joined,
    large,
    paragraph,
    percent,
    problem,
    table,
    text,
)
from flows.report.manifest_facts import CorpusFacts, TextFigure, length_order
from flows.report.samples import mask_kind
from pipelines.contract.schemas import CONTINUATION, SPECIAL_TOKENS, UNMASKED
from pipelines.statistics.preprocessing import LengthStatistics, SourceStatistics

Facts = dict[str, Any]

_LABELS = {0: "B continues A (IsNext)", 1: "B is from another document (NotNext)"}
_FIGURES = {
    "unk_share": "[UNK] among all tokens",
    "unk_characters_share": "characters lost in [UNK]",
    "pieces_per_word": "pieces a word",
}
_KINDS = {"mask": "shown as [MASK]", "random": "shown as a random token", "kept": "unchanged"}


def corpus(facts: Facts) -> str:
    """Documents read and kept, and the reasons of rejections, with one sample of each."""
    found = CorpusFacts.model_validate(facts["corpus"])
    if found.documents_read is None:
        return ""
    sources = [
        paragraph(
            f"Source {code(source.get('format'))}:",
            ", ".join(foreign(name) for name in source.get("inputs", [])[:8])
            + (f" and {count(len(source['inputs']) - 8)} more" if len(source.get("inputs", [])) > 8 else ""),
        )
        for source in found.sources
    ]
    kept, read = found.documents_kept, found.documents_read
    counts = table(
        "Documents read",
        ("", "number", "share of read"),
        [
            ("documents read", count(read), ""),
            ("documents kept", count(kept), _share(kept, read)),
            ("documents rejected", count(found.documents_rejected), _share(found.documents_rejected, read)),
            (
                "documents held out for evaluation",
                count(found.heldout_documents),
                _share(found.heldout_documents, read),
            ),
            ("sentences", count(found.sentences), ""),
            ("characters", count(found.characters), ""),
        ],
        numbers=(1, 2),
    )
    return joined(*sources, counts, _rejected(found, facts["rejects"]), _cleaning(found))


def _share(part: int | None, whole: int | None) -> str:
    return percent(part / whole) if part is not None and whole else UNKNOWN


def _rejected(found: CorpusFacts, samples: Facts) -> str:
    reasons = sorted(found.rejected_by_reason.items(), key=lambda item: (-item[1], item[0]))
    if not reasons:
        return ""
    examples = samples if "problem" not in samples else {}
    rows = []
    for reason, number in reasons:
        sample = examples.get(reason)
        shown = f"{code(sample['source'])}<br>{foreign(sample['detail'])}" if sample else UNKNOWN
        rows.append((text(reason), count(number), shown))
    return "\n".join(
        [
            "<h3>Rejected, by reason</h3>",
            table("Rejected texts by reason", ("reason", "texts", "first example"), rows, numbers=(1,)),
            problem(samples),
            paragraph(f"All rejected texts are in {code('documents/rejected.jsonl.gz')}.", css="small"),
        ]
    )


def _cleaning(found: CorpusFacts) -> str:
    changes = [f"{count(number)} {text(name.replace('_', ' '))}" for name, number in found.cleaning.items()]
    return paragraph(f"Cleaning: {', '.join(changes)}.", css="small") if changes else ""


def vocabulary(facts: Facts) -> str:
    """Sizes and samples of the vocabulary."""
    found, sample, examples = CorpusFacts.model_validate(facts["corpus"]), facts["vocabulary"], facts["examples"]
    if not sample:
        return ""
    if "problem" in sample:
        return problem(sample)
    lead = paragraph(
        f"{count(sample['entries'])} entries" + _origin(found),
        f"{count(sample['words'])} words and beginnings of words, {count(sample['pieces'])} pieces that continue a "
        f"word ({code(CONTINUATION)}), {count(sample['characters'])} single characters, {count(sample['special'])} "
        "special or unused.",
    )
    groups = [
        ("Frequent complete words", examples.get("frequent_words", [])),
        ("Longest entries", sample["longest"]),
        ("Pieces learnt first", sample["pieces_learnt_first"]),
        ("Words learnt last", sample["learnt_last"]),
    ]
    parts = [f"<h3>{heading}</h3>{_tokens(map(foreign, tokens))}" for heading, tokens in groups if tokens]
    split = examples.get("split_words", [])
    if split:
        cut = '<span class="cut">·</span>'
        words = [cut.join(foreign(piece) for piece in word) for word in split]
        parts.insert(1, f"<h3>Words in three or more pieces</h3>{_tokens(words)}")
    parts.append(_text_figures(found.text_figures))
    if rows := examples.get("rows_counted"):
        parts.append(paragraph(f"Frequencies are those of {count(rows)} training examples.", css="small"))
    return joined(lead, *parts)


def _origin(found: CorpusFacts) -> str:
    """Where the entries come from."""
    if found.vocabulary_origin is not None:
        added = f", with {count(found.words_added)} words of the corpus added" if found.words_added else ""
        return f" brought from {foreign(found.vocabulary_origin)}{added}:"
    return ":" if found.distinct_words is None else f" learnt from {count(found.distinct_words)} distinct words:"


def _text_figures(figures: Sequence[TextFigure]) -> str:
    """How well the vocabulary fits the text, if the manifests state it."""
    if not figures:
        return ""
    rows = [
        (text(_FIGURES.get(each.figure, each.figure.replace("_", " "))), text(each.stage), _figure(each))
        for each in figures
    ]
    return "<h3>How it fits the text</h3>" + table("Fit of the vocabulary", ("", "of", "value"), rows, numbers=(2,))


def _figure(each: TextFigure) -> str:
    value = each.value
    if each.figure.endswith("_share"):
        return percent(value)
    return count(value) if isinstance(value, int) else f"{value:.2f}"


def _tokens(items: Any) -> str:
    return f'<ul class="tokens">{"".join(f"<li>{item}</li>" for item in items)}</ul>'


def examples(facts: Facts) -> str:
    """Lengths and masks of all examples, and single ones as text."""
    found, sample = CorpusFacts.model_validate(facts["corpus"]), facts["examples"]
    lengths = dict(sorted(found.lengths.items(), key=lambda item: length_order(item[0])))
    if not lengths and not sample:
        return ""
    lead = paragraph(f"{count(found.examples)} examples with {large(found.example_tokens)} tokens.")
    rows = [
        (
            text(length),
            count(each.examples),
            count(each.tokens),
            percent(each.masked_share),
            percent(each.random_next_share),
        )
        for length, each in lengths.items()
    ]
    header = ("maximum length", "examples", "tokens", "to predict", "B is random")
    charts = [_length_chart(length, each) for length, each in lengths.items()]
    return joined(
        lead,
        table("Examples by maximum length", header, rows, numbers=range(1, 5)) if rows else "",
        f'<div class="figures">{"".join(charts)}</div>' if any(charts) else "",
        _sources(found.mixtures),
        _mask_shares(lengths),
        problem(sample),
        _shown_examples(sample),
    )


def _sources(mixtures: Mapping[str, Mapping[str, SourceStatistics]]) -> str:
    rows = [
        (
            text(name or "examples"),
            text(source),
            count(facts.train_documents),
            count(facts.train_tokens),
            f"{facts.reads_per_pass:.2f}",
            percent(facts.asked_share),
            percent(facts.share),
        )
        for name, sources in mixtures.items()
        for source, facts in sources.items()
    ]
    header = ("set", "source", "training documents", "tokens", "reads a pass", "share asked for", "share read")
    return table("Sources of the examples", header, rows, numbers=range(2, 7)) if rows else ""


def _length_chart(length: str, statistics: LengthStatistics) -> str:
    bars = [(str(int(label)), number) for label, number in statistics.length_histogram.items()]
    chart = histogram(f"Examples by number of tokens, maximum {length}", "tokens, up to", bars)
    shown = f"Mean {statistics.mean_length:.1f}, shortest {count(statistics.shortest_example)}."
    return figure(chart, f"Lengths, maximum {text(length)}", text(shown))


def _mask_shares(lengths: Mapping[str, LengthStatistics]) -> str:
    kinds = {
        "mask": sum(each.masked_as_mask for each in lengths.values()),
        "random": sum(each.masked_as_random for each in lengths.values()),
        "kept": sum(each.masked_as_kept for each in lengths.values()),
    }
    total = sum(kinds.values())
    if not total:
        return ""
    shares = [
        f'<span class="sample {kind}">{text(_KINDS[kind])}</span> {percent(kinds[kind] / total)}' for kind in kinds
    ]
    return paragraph("Of the tokens to predict:", ", ".join(shares) + ".")


def _shown_examples(sample: Facts) -> str:
    shown = sample.get("examples", [])
    if not shown:
        return ""
    dynamic = sample["masking"] in UNMASKED
    how = (
        "Training draws new masks in each epoch (dynamic masking), so the examples on disk have none."
        if dynamic
        else "The model's input, with the original below each token to predict. One of the first examples for "
        "each next-sentence label, chosen to show every kind of mask."
        if sample["has_pairs"]
        else "The model's input, with the original below each token to predict. Full sentences, no next-sentence task."
    )
    bodies = [_example(example, sample["has_pairs"]) for example in shown]
    return "\n".join(["<h3>Model input</h3>", paragraph(how, css="note"), *bodies])


def _example(example: Facts, has_pairs: bool) -> str:
    tokens, start = example["tokens"], example["segment_b_start"]
    length = f"{len(tokens)} tokens"
    if not has_pairs:
        return f'<article><p class="label">{length}</p><div class="segment s1">{_running(tokens)}</div></article>'
    label = f'<p class="label">{text(_LABELS[example["is_random_next"]])}, {length}</p>'
    segments = (("A", "s1", tokens[:start]), ("B", "s4", tokens[start:]))
    blocks = [f'<div class="segment {css}"><b>{name}</b>{_running(part)}</div>' for name, css, part in segments]
    return f"<article>{label}{''.join(blocks)}</article>"


def _running(tokens: Sequence[Sequence[str | None]]) -> str:
    """Tokens as running text: pieces are joined to the previous word, masked positions are marked."""
    parts: list[str] = []
    for shown, original in tokens:
        assert shown is not None
        kind = mask_kind(shown, original)
        joined = shown.startswith(CONTINUATION) and len(shown) > len(CONTINUATION)
        if kind is not None:
            mark = f'<ruby class="{kind}" title="{_KINDS[kind]}">{foreign(shown)}<rt>{foreign(original)}</rt></ruby>'
            parts.append(f"{'' if joined else ' '}{mark}")
        elif shown in SPECIAL_TOKENS:
            parts.append(f' <span class="special">{text(shown)}</span>')
        else:
            parts.append(foreign(shown.removeprefix(CONTINUATION)) if joined else f" {foreign(shown)}")
    return "".join(parts)
