"""Each format on small inputs: what becomes a document, what is rejected and why."""

from __future__ import annotations

import bz2
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tests.support.preprocessing.reading import files_of, read, reasons_of, texts_of

from pipelines.contract.errors import InputError
from pipelines.documents.document import Document, DocumentReader
from pipelines.reading.source import RawDocument, Reject
from pipelines.reading.wiki_markup import prose_of
from pipelines.settings.documents import DocumentsConfig, SourceConfig

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "latin-1", "cp1252"]


def packed(name: str, data: bytes) -> bytes:
    """Data in two packed streams, as from `cat a.gz b.gz` and in multistream dumps."""
    half = len(data) // 2
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "zst": lambda part: pa.Codec("zstd").compress(part, asbytes=True)}
    compress = pack[name]
    return bytes(compress(data[:half]) + compress(data[half:]))


def test_google_bert_sentences_are_kept_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One. Still the first.\r\nshe said (\n\n\nOther  document has one.\n")
    source = SourceConfig(inputs=(str(tmp_path / "a.txt"),), document_separator="google-bert")
    config = DocumentsConfig(sources=(source,), min_characters=1)
    found = list(DocumentReader(config).read(files_of(source)[0], source))
    assert all(isinstance(item, Document) for item in found)
    assert [item.sentences for item in found if isinstance(item, Document)] == [
        ["One. Still the first.", "she said ("],
        ["Other document has one."],
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", ["file", "blank-line"])
def test_encodings_and_byte_order_marks(tmp_path: Path, encoding: str, separator: str) -> None:
    text = "Größe: déjà.\r\n\r\nEnde ñ."
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    declared = "cp1251" if encoding in ("utf-8-sig", "utf-16", "utf-32") else encoding
    items = read(tmp_path, document_separator=separator, encoding=declared)
    assert texts_of(items) == (["Größe: déjà.\n\nEnde ñ."] if separator == "file" else ["Größe: déjà.", "Ende ñ."])


@pytest.mark.parametrize("codec", ["gz", "bz2", "zst"])
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"format": "text"}, "One.\n\nTwo."),
        ({"format": "text", "document_separator": "blank-line"}, "One.\n\nTwo."),
        ({"format": "jsonl"}, '{"text": "One."}\n{"text": "Two."}'),
        ({"format": "wikiextractor"}, '<doc id="1" title="T">\nT\n\nOne.\n</doc>\n'),
    ],
)
def test_packed_files_give_what_the_plain_file_gives(
    tmp_path: Path, codec: str, settings: dict[str, Any], text: str
) -> None:
    (tmp_path / "a").write_text(text)
    (tmp_path / f"b.{codec}").write_bytes(packed(codec, text.encode()))
    plain, unpacked = read(tmp_path / "a", **settings), read(tmp_path / f"b.{codec}", **settings)
    assert texts_of(unpacked) == texts_of(plain) != []
    assert not reasons_of(unpacked)


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": 7, "meta": {"body": "Déjà\nvu."}}, ensure_ascii=False),
        "",
        '{"meta": {"body": "cut',
        '{"meta": {"title": "x", "id": 3}}',
        '{"meta": {"body": 3}}',
        '{"meta": {"body": null}}',
        '["meta"]',
        '{"meta": {"body": "\\ud800"}}',
        "[" * 100_000,
        '{"meta": {"body": "last"}}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    items = read(tmp_path / "a.jsonl", format="jsonl", text_field="meta.body")
    assert texts_of(items) == ["Déjà\nvu.", "last"]
    assert items[0].source == "a.jsonl#3"
    assert len({item.source for item in items}) == len(items)
    rejects = [(item.reason, item.detail) for item in items if isinstance(item, Reject)]
    assert rejects[:6] == [
        ("bad-json", "line 3: Unterminated string starting at at character 18"),
        ("missing-field", "line 4: no 'body' of 'meta.body'; fields there: title, id"),
        ("not-a-string", "line 5: 'meta.body' is int"),
        ("not-a-string", "line 6: 'meta.body' is null"),
        ("bad-json", "line 7: list, not an object"),
        ("undecodable", "line 8: half a surrogate pair at character 0 of 'meta.body'"),
    ]
    assert rejects[6][0] == "bad-json"


def test_halves_of_surrogate_pairs_in_labels_and_details_can_be_written(tmp_path: Path) -> None:
    rows = ['{"id": "\\ud800", "title": "\\udfff", "text": "Fine."}', '{"\\ud800": 1}']
    (tmp_path / "a").write_text("\n".join(rows))
    items = read(tmp_path / "a", format="wikiextractor")
    assert [type(item).__name__ for item in items] == ["RawDocument", "Reject"]
    assert all(b"\\ud800" in f"{item}".encode() for item in items)


def write_table(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
        return
    opener = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    with opener(path, table.schema) as writer:
        writer.write_table(table, 2)


TABLES = [("parquet", "a.parquet"), ("arrow", "a.arrow"), ("arrow", "a.arrows")]


@pytest.mark.parametrize(("format_name", "name"), TABLES)
@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_tables(tmp_path: Path, format_name: str, name: str, text_type: pa.DataType) -> None:
    body = pa.array(["Eins ñ.", None, "Drei."]).cast(text_type)
    write_table(tmp_path / name, pa.table({"n": [1, 2, 3], "body": body}))
    items = read(tmp_path / name, format=format_name, text_field="body")
    assert texts_of(items) == ["Eins ñ.", "Drei."]
    assert reasons_of(items) == ["not-a-string"]
    assert len({item.source for item in items}) == 3
    assert all(item.source.startswith(f"{name}#") for item in items)


@pytest.mark.parametrize(("format_name", "name"), TABLES)
def test_a_wrong_column_is_one_clear_line(tmp_path: Path, format_name: str, name: str) -> None:
    write_table(tmp_path / name, pa.table({"n": [1], "body": ["x"]}))
    with pytest.raises(
        InputError, match=r"text_field = 'text': .* has no columns of this name; columns there: n, body"
    ):
        read(tmp_path / name, format=format_name)
    with pytest.raises(InputError, match="has int64 in this column, not text; text is in: body"):
        read(tmp_path / name, format=format_name, text_field="n")


def test_bytes_in_a_table_are_decoded_row_by_row(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", pa.table({"text": [b"fine", b"caf\xe9", b"fine too"]}))
    items = read(tmp_path, format="parquet")
    assert texts_of(items) == ["fine", "fine too"]
    assert reasons_of(items) == ["undecodable"]


def test_a_wrong_field_is_one_clear_line_and_a_missing_one_in_some_records_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "meta": {"id": 1}}\n{"text": "here"}\n')
    assert reasons_of(read(tmp_path, format="jsonl")) == ["missing-field"]
    with pytest.raises(InputError, match=r"text_field = 'meta.txt' .*; fields there: body, meta, meta.id, text"):
        read(tmp_path, format="jsonl", text_field="meta.txt")


def test_settings_that_a_format_does_not_have_are_refused() -> None:
    with pytest.raises(ValidationError, match="text_field has no meaning for format = 'text', only for jsonl, parquet"):
        SourceConfig(inputs=("x",), text_field="body")


@pytest.mark.parametrize("encoding", ["utf-9", "rot13", "base64", "cp037", "punycode", "utf-7", "raw_unicode_escape"])
def test_encodings_that_no_reader_can_use_are_refused(encoding: str) -> None:
    with pytest.raises(ValidationError, match="encoding"):
        SourceConfig(inputs=("x",), encoding=encoding)
    assert SourceConfig(inputs=("x",), encoding="Latin1").encoding == "iso8859-1"


WIKIEXTRACTOR = """<doc id="12" url="u?curid=12" title="A &quot;B&quot; &amp; C">
A "B" &amp; C

First paragraph with &lt;tags&gt;.
Second paragraph.

</doc>
<doc id="13" url="u" title="Only">
Only

</doc>
<doc id="14" url="u" title="Void">
</doc>
<doc id="15" url="u" title="Open">
Open

Never closed.
"""


def test_wikiextractor_markup(tmp_path: Path) -> None:
    (tmp_path / "wiki_00").write_text(WIKIEXTRACTOR)
    items = read(tmp_path, format="wikiextractor")
    name = f"{tmp_path.name}/wiki_00"
    assert items[0] == RawDocument(f"{name}#12", "First paragraph with <tags>.\n\nSecond paragraph.")
    assert [(item.source, item.reason) for item in items if isinstance(item, Reject)] == [
        (f"{name}#13", "title-only"),
        (f"{name}#14", "empty"),
        (f"{name}#15", "truncated"),
    ]


def test_wikiextractor_json(tmp_path: Path) -> None:
    rows = [
        {"id": "12", "url": "u", "title": "T", "text": "T\n\nProse &amp; more.\nSecond."},
        {"id": "13", "url": "u", "title": "T", "text": "T\n"},
        {"id": "14", "url": "u", "title": "T", "text": ""},
        {"id": "15", "url": "u", "title": "T"},
    ]
    (tmp_path / "wiki_00").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read(tmp_path / "wiki_00", format="wikiextractor")
    assert items[0] == RawDocument("wiki_00#12", "Prose & more.\n\nSecond.")
    assert reasons_of(items) == ["title-only", "empty", "missing-field"]


def test_text_outside_articles_is_not_lost_silently(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('Preface.\n<doc id="1" title="T">\nT\n\nText.\n</doc>\nBetween.\n')
    assert reasons_of(read(tmp_path / "a", format="wikiextractor")) == ["stray-text", "stray-text"]


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="de">
  <siteinfo><namespaces>
    <namespace key="0" /><namespace key="1">Diskussion</namespace>
    <namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace>
  </namespaces></siteinfo>
{}
</mediawiki>
"""


def page(number: int, text: str, extra: str = "<ns>0</ns>", model: str = "wikitext") -> str:
    return f"""  <page>
    <title>Page {number}</title>{extra}<id>{number}</id>
    <revision><id>1</id><model>{model}</model><text xml:space="preserve">old</text></revision>
    <revision><id>2</id><model>{model}</model><text xml:space="preserve">{text}</text></revision>
  </page>"""


def test_mediawiki_pages(tmp_path: Path) -> None:
    pages = [
        page(1, "'''Prose''' with [[link|a link]] &amp;amp; [[Datei:x.png|mini|Caption [[y]]]]more.\n[[Kategorie:Z]]"),
        page(2, "Moved to [[Page 1]].", '<ns>0</ns><redirect title="Page 1" />'),
        page(3, "#WEITERLEITUNG [[Page 1]]"),
        page(4, "Talk.", "<ns>1</ns>"),
        page(5, "{{Infobox}}"),
        page(6, "body {}", model="css"),
        page(7, "Broken <b> XML"),
        page(8, "Number.", "<ns>zero</ns>"),
        page(9, "Last &lt;page&gt; one."),
    ]
    text = DUMP.format("\n".join(pages))
    (tmp_path / "dump.xml").write_text(text)
    items = read(tmp_path / "dump.xml", format="mediawiki")
    assert items[0] == RawDocument("dump.xml#1", "Prose with a link & more.")
    assert texts_of(items)[1:] == ["Last one."]
    assert reasons_of(items) == [
        "redirect",
        "redirect",
        "not-an-article",
        "empty",
        "not-wikitext",
        "bad-xml",
        "bad-xml",
    ]
    (tmp_path / "dump.xml.bz2").write_bytes(packed("bz2", text.encode()))
    assert texts_of(read(tmp_path / "dump.xml.bz2", format="mediawiki")) == texts_of(items)


def test_a_page_without_a_number_of_its_namespace_is_known_by_its_title(tmp_path: Path) -> None:
    pages = [
        page(1, "An article.", extra=""),
        page(2, "Talk.", extra="").replace("Page 2", "Diskussion:Page 1"),
        page(3, "Says &lt;ns&gt;0&lt;/ns&gt;.", extra="").replace("Page 3", "Kategorie:Pages"),
    ]
    (tmp_path / "dump.xml").write_text(DUMP.format("\n".join(pages)))
    items = read(tmp_path / "dump.xml", format="mediawiki")
    assert texts_of(items) == ["An article."]
    assert [item.detail for item in items if isinstance(item, Reject)] == [
        "'Page 1' is in namespace 1",
        "'Pages' is in namespace 14",
    ]


def test_what_is_no_dump_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<html>\n<body>Hello.</body></html>")
    assert reasons_of(read(tmp_path, format="mediawiki")) == ["not-mediawiki"]


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("a<ref>x [[y]]</ref>b<ref name=z />c<ref name='q'>{{cite|a=>}}</ref>d", "abcd"),
        ("a{{t|{{u|{{{v}}}}}|\n{|\n| x\n|}\n}}b", "ab"),
        ("Top.\n{| class=x\n! h\n|-\n| c {{t}}\n{|\n| inner\n|}\n| d\n|}\nEnd.", "Top.\n\nEnd."),
        ("Top.\n\n{| class=x\n|-\n| never closed", "Top."),
        ("Text {{never closed\n\nMore [[never closed too", "Text never closed\n\nMore never closed too"),
        ("[[File:a.png|thumb|200px|A [[b]] c.]]Text.", "Text."),
        ("[[Image:a.png|thumb|open [[b]]\n\nText.", "Text."),
        (
            "[[A]], [[A b|c]]s, [[:Category:X]], [[Category:X]][[de:X]][http://x y z] [http://x]",
            "A, cs, Category:X, y z",
        ),
        ("Text.\n== Heading ==\n* item\n# item\n: indented\n; term\n----\nMore.", "Text.\n\nMore."),
        ("''i'' '''b''' '''''bi''''' it's", "i b bi it's"),
        ("x &lt; y &amp;lt; z&nbsp;w &eacute; <nowiki>[[raw]] ''q''</nowiki>", "x < y &lt; z w é [[raw]] ''q''"),
        ("Name ({{lang|x}}; {{y}}; 1 May 1900, ) and ( ) .", "Name (1 May 1900) and."),
        ("H<sub>2</sub>O<br />b <span style='x'>c</span> <math>x|y</math><!-- no", "H2O b c"),
        ("a &#x5B;b&#93; &copy=1 &amp;#65; c", "a [b] &copy=1 &#65; c"),
        ("a &#xD800; &#99999999999; &#0; b", "a &#99999999999; &#0; b"),
        ("[[a {{b]] c}} d\n* [[Image:x|y\ne", "a b c d\n\ne"),
        ("a <table><tr><td>x<table>y</table>z</td></tr></table>b<REF>c</Ref>", "a b"),
        ("a <ref>b <references/> c <ref>d</ref> e\nf", "a \nf"),
        ("1 < 2 [http://x [[a|b]] ''c''] [[d|[http://x e]]] [//x f] [sic]", "1 < 2 b c e f [sic]"),
        ("a-{zh-hans:B; zh-hant:C}-d-{R|raw: e}-f-{H|zh-cn:x;zh-tw:y}-g-{zh-hans|h}-i", "aBdraw: efghi"),
        ("-{zh-hans:[[A|b]]; zh-hant:[[C|d]]}- -{x=>zh-cn:y; x=>zh-tw:z}- -{plain}- -{T|zh:t}-", "b y plain"),
        ("-{zh:a-{zh-hans:b&nbsp;c; zh-hant:d}-e;zh-tw:f}-", "ab ce"),
        ("-{never closed and {{t|-{{u}}-}} x-{y", "-{never closed and x-{y"),
        ("[[Bild:x.jpg|thumb|250px|A [[b]] caption]]Text [[Bestand:y.SVG]]and [[any:thing.png|open [[b]]", "Text and"),
        (
            "[[Fichier:a b.jpeg|vignette|c]]T [[Kategorie:Q]][[分类:R]][[WP:About|about]] [[:Bild:x.jpg|seen]]",
            "T about seen",
        ),
        ("[[a.png|file]] [[Talk: of a.jpg and more|text]]", "file text"),
        ("__NOTOC__Text <gallery>\nFile:x|y\n</gallery>done", "Text done"),
        ("", ""),
    ],
)
def test_wiki_markup(wikitext: str, prose: str) -> None:
    assert re.sub(r"\n\s*\n", "\n\n", prose_of(wikitext)) == prose
