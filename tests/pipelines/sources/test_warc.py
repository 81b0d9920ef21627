"""WARC and WET files that warcio wrote: which records become documents, encodings, damage, and real pages."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

warcio = pytest.importorskip("warcio", reason="the extra warc is not installed")
pytest.importorskip("resiliparse", reason="the extra warc is not installed")

from tests.support.preprocessing.reading import read, reasons_of, texts_of  # noqa: E402
from warcio.statusandheaders import StatusAndHeaders  # noqa: E402
from warcio.warcwriter import WARCWriter  # noqa: E402

from pipelines.contract.errors import InputError  # noqa: E402
from pipelines.reading.source import Reject  # noqa: E402

PAGE = (
    "<html><head><title>A title</title><script>var x = 1;</script></head><body><nav><a href='/'>Home</a></nav>"
    "<main><h1>The heading</h1><p>The first paragraph says déjà vu, with <b>bold</b> words in it.</p>"
    "<p>The second paragraph is a little longer than the first one, and it ends here.</p></main>"
    "<footer>Imprint</footer></body></html>"
)
PROSE = (
    "The heading\n\nThe first paragraph says déjà vu, with bold words in it.\n\n"
    "The second paragraph is a little longer than the first one, and it ends here."
)


class Archive:
    """A WARC file that is being written."""

    def __init__(self, path: Path):
        self.path = path
        self._stream = io.BytesIO()
        self._writer = WARCWriter(self._stream, gzip=path.suffix == ".gz")

    def page(
        self, body: bytes, content_type: str = "text/html; charset=utf-8", status: str = "200 OK", **more: str
    ) -> None:
        headers = [("Content-Type", content_type), *((name.replace("_", "-"), value) for name, value in more.items())]
        http = StatusAndHeaders(status, headers, protocol="HTTP/1.1")
        self._add("response", body, http_headers=http)

    def text(self, body: bytes) -> None:
        self._add("conversion", body, warc_content_type="text/plain")

    def info(self) -> None:
        self._writer.write_record(self._writer.create_warcinfo_record("a.warc", {"software": "test"}))

    def request(self) -> None:
        http = StatusAndHeaders("GET / HTTP/1.1", [("Host", "example.org")], is_http_request=True)
        self._add("request", b"", http_headers=http)

    def close(self, cut_bytes: int = 0) -> Path:
        data = self._stream.getvalue()
        self.path.write_bytes(data[: len(data) - cut_bytes])
        return self.path

    def _add(self, kind: str, body: bytes, **more: object) -> None:
        address = "http://example.org/page"
        self._writer.write_record(self._writer.create_warc_record(address, kind, payload=io.BytesIO(body), **more))


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages_become_documents_and_all_other_records_are_counted(tmp_path: Path, name: str) -> None:
    archive = Archive(tmp_path / name)
    archive.info()
    archive.request()
    archive.page(PAGE.encode())
    archive.page(PAGE.encode("latin-1"), "text/html; charset=ISO-8859-1")
    archive.page(PAGE.replace("<title>", "<meta charset='cp1252'><title>").encode("cp1252"), "text/html")
    archive.page(gzip.compress(PAGE.encode()), Content_Encoding="gzip")
    archive.page(b"%PDF-1.7", "application/pdf")
    archive.page(PAGE.encode(), status="404 Not Found")
    archive.page(b"<html><body><nav>Menu</nav></body></html>")
    archive.text("Déjà vu.\nA second block.\n".encode())
    archive.text("Déjà".encode("latin-1"))
    items = read(archive.close(), format="warc")
    assert texts_of(items) == [*[PROSE] * 4, "Déjà vu.\n\nA second block."]
    assert reasons_of(items) == [
        *("not-a-page", "not-a-page", "not-a-page", "no-success", "empty", "undecodable"),
    ]
    assert items[1] == Reject(items[1].source, "not-a-page", "a request record: http://example.org/page")
    assert items[0].source == f"{name}#0"
    assert len({item.source for item in items}) == len(items) == 11


@pytest.mark.parametrize(("name", "cut_bytes"), [("a.warc", 40), ("a.warc.gz", 40)])
def test_of_a_file_that_is_cut_off_the_whole_records_are_kept(tmp_path: Path, name: str, cut_bytes: int) -> None:
    archive = Archive(tmp_path / name)
    for _ in range(3):
        archive.page(PAGE.encode())
    items = read(archive.close(cut_bytes), format="warc")
    assert texts_of(items) == [PROSE] * 2
    assert reasons_of(items) == ["truncated"]


def test_the_encoding_of_the_http_header_is_that_of_the_page(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "a.warc")
    page = PAGE.replace("<title>", "<meta charset='iso-8859-7'><title>").replace("déjà vu", "снова")
    archive.page(page.encode("cp1251"), "text/html; charset=windows-1251")
    archive.page(PAGE.replace("déjà vu", "not so").encode() + b"\xff", "text/html; charset=utf-8")
    first, second = texts_of(read(archive.close(), format="warc"))
    assert first == PROSE.replace("déjà vu", "снова")
    assert second.startswith(PROSE.replace("déjà vu", "not so"))


def test_damage_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b"This is a text, not an archive.\n" * 20)
    (tmp_path / "b.warc.gz").write_bytes(b"\x1f\x8b nothing that was packed")
    (tmp_path / "c.warc").write_bytes(b"")
    assert reasons_of(read(tmp_path, format="warc")) == ["damaged", "truncated"]


def test_a_page_that_unpacks_to_too_much_costs_itself_only(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "a.warc")
    archive.page(gzip.compress(b"<p>" + b"word " * 2_000_000), Content_Encoding="gzip")
    archive.page(PAGE.encode())
    items = read(archive.close(), format="warc", max_record_bytes=1 << 16)
    assert reasons_of(items) == ["too-large"]
    assert texts_of(items) == [PROSE]


def test_without_the_extra_it_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "resiliparse", None)
    with pytest.raises(InputError, match=r"format = 'warc' needs packages .* pip install 'clozeworks\[warc\]'"):
        read(tmp_path, format="warc")


def test_real_pages(shared_data: Path, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "a.warc.gz")
    pages = sorted((shared_data / "messy/html").glob("*.html"))
    for path in pages:
        archive.page(path.read_bytes(), "text/html")
    texts = texts_of(read(archive.close(), format="warc"))
    assert len(texts) == len(pages) == 2
    assert any(
        "This module provides a portable way of using operating system dependent functionality" in t for t in texts
    )
    assert not any("</" in text and "<div" in text for text in texts)
