"""Wikitext to the prose that a reader sees: no tables, templates, references, captions, lists or headings.

BERT's authors took "only the text passages" of Wikipedia and ignored "lists, tables, and headers". Markup that
mwparserfromhell leaks or is slow at (nested templates and tables, references, unbalanced brackets) is removed before it
parses the rest; in real articles that is most of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html.entities import name2codepoint

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, HTMLEntity, Node, Tag, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

_DROPPED_TAGS = (
    "ref|references|gallery|timeline|math|chem|code|pre|syntaxhighlight|source|score|imagemap|table|graph|mapframe"
    "|maplink|hiero|inputbox|templatedata|templatestyles|section|includeonly|style|script|indicator|categorytree"
)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_NOWIKI = re.compile(r"<nowiki>([^<]*(?:<(?!/?nowiki\b)[^<]*)*)</nowiki>|<nowiki\s*/>", re.IGNORECASE)
_EMPTY_ELEMENT = re.compile(rf"<(?:{_DROPPED_TAGS})\b[^<>]*/>", re.IGNORECASE)
# Innermost elements only: searching past the next opening would be quadratic in the unclosed ones.
_ELEMENT = re.compile(rf"<({_DROPPED_TAGS})\b[^<>]*>[^<]*(?:<(?!/?\1\b)[^<]*)*</\1\s*>", re.IGNORECASE)
_UNCLOSED_ELEMENT = re.compile(rf"<(?:{_DROPPED_TAGS})\b[^\n]*", re.IGNORECASE)
# The first alternative is a link without other markup, most of all brackets: it opens and closes at once.
_BRACES = re.compile(r"\[\[[^\[\]{}\n]*\]\]|\{\{|\}\}|\[\[|\]\]|^[ \t:*]*\{\||^[ \t]*\|\}(?!\})", re.MULTILINE)
_OPENING = {"}}": "{{", "]]": "[[", "|}": "{|"}
# Names of the file namespace differ between languages, the endings of media files do not.
_MEDIA_ENDING = r"\.(?:jpe?g|png|svg|gif|tiff?|webp|xcf|pdf|djvu|og[gva]|opus|webm|mp[34]|mpe?g|wav|flac|midi?|stl)"
_MEDIA_TITLE = re.compile(rf"[^:\[\]|\n]{{1,40}}:[^\[\]|\n]*{_MEDIA_ENDING}[ \t]*", re.IGNORECASE)
_FILE_LINK = re.compile(
    rf"\[\[[ \t]*(?:(?:File|Image):|{_MEDIA_TITLE.pattern}(?:\||\]\]|$))", re.IGNORECASE | re.MULTILINE
)
_LINES = re.compile(r"^[ \t]*(?:=.*=[ \t]*|[*#;:|!].*|-{4,})$", re.MULTILINE)
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?:(?! )")
_BARE_SCHEMES = ("bitcoin:", "geo:", "magnet:", "mailto:", "news:", "sip:", "sips:", "sms:", "tel:", "urn:", "xmpp:")
# Links whose label holds no brackets, most of all links. What begins as an address is none.
_PLAIN_LINK = re.compile(
    rf"(?<!\[)\[\[(?!\s*(?:(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//|(?i:{'|'.join(_BARE_SCHEMES)})))"
    r"([^\[\]{}|\n]+)(?:\|([^\[\]{}\n]*))?\]\]"
)
_HEADING = re.compile(r"^(={1,6})(?!=)[^=\n]+\1(?=[ \t]*$)", re.MULTILINE)
# Entities and brackets in an address are no markup.
_ADDRESS_WITH_MARKUP = re.compile(r"[a-z]:\S*?(?:&#?\w+;|\}\}|\|\}|\]\])", re.IGNORECASE)
_WEB_ADDRESS_WITH_MARKUP = re.compile(r"//\S*?(?:&#?\w+;|\}\}|\|\}|\]\])")
_ENTITY = re.compile(r"&(?:#(?:[xX]([0-9a-fA-F]+)|([0-9]+))|([A-Za-z0-9]+));")
_LARGEST_CHARACTER = 0x10FFFF
_LEFT_BRACKETS = re.compile(r"\[\[|\]\]|\{\{+|\}\}+|\{\||\|\}")
_BREAK = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_EXTERNAL_OPENING = re.compile(r"\[(?=(?:https?:|ftps?:)?//|mailto:)", re.IGNORECASE)
# A character that XML cannot hold stands for the bracket before an address.
_EXTERNAL_LINK = re.compile(r"\x02[^\s\]\x02]*[ \t]*([^\]\n\x02]*)\]?")
# Text in several scripts, of which a reader sees one: -{zh-hans:A; zh-hant:B}-, or -{flags|text}-.
_CONVERSION = re.compile(r"-\{([^{}]*)\}-")
_CONVERSION_FLAGS = re.compile(r"\s*([A-Za-z;\- ]*)\|")
_HIDING_FLAGS = frozenset("HT-")
_VARIANT = re.compile(r"(?:^|;)\s*(?:[^:;]*=>)?\s*[a-z]{2,3}(?:-[a-z]+)*\s*:")
_CONVERSION_DEPTH = 5
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_QUOTES = re.compile(r"'{2,}")
_WIDE_GAP = re.compile(r"[ \t\xa0]{2,}")
# Each begins with its bracket or comma, which is found faster than a space that may precede it.
_EMPTY_PARENTHESES = re.compile(r"\([ \xa0,;:]*\)|\[[ \xa0,;:]*\]")
_GAP_IN_PARENTHESES = re.compile(r"\([ \xa0]?[,;:][ \xa0,;:]*")
_GAP_BEFORE_PARENTHESIS = re.compile(r"[,;][ \xa0]?(?=\))")
_GAP_BEFORE_STOP = re.compile(r"[ \xa0](?=[,.](?:\s|$))")
_INACTIVE = str.maketrans({character: f"&#{ord(character)};" for character in "[]{}|<>'=*#:;!-_()"})
_INACTIVE_ENTITY = _INACTIVE | str.maketrans({"&": "&#38;"})
_ACTIVE = {entity: chr(code) for code, entity in _INACTIVE_ENTITY.items()}
_INACTIVE_CHARACTER = re.compile("|".join(_ACTIVE))

# In addition to the names in a dump's own description, which hand-made extracts lack.
_CATEGORY_NAMES = """
category kategorie catégorie categoría categoria categorie kategoria kategori kategória kategorija kategorio kategooria
luokka flokkur категория категорія категорија катэгорыя κατηγορία קטגוריה تصنيف رده श्रेणी বিষয়শ্রেণী หมวดหมู่ 分类 分類
カテゴリ 분류
"""
_FILE_NAMES = """
file image media datei bild fichier archivo imagen ficheiro imagem immagine bestand afbeelding plik grafika fil billede
bilde tiedosto kuva fájl kép soubor súbor dosya resim berkas gambar fitxer imatge fișier imagine datoteka slika dosiero
файл изображение зображення датотека слика αρχείο εικόνα קובץ תמונה ملف صورة پرونده ไฟล์ चित्र 文件 图像 檔案 圖像
ファイル 画像 파일 그림
"""
ALWAYS_DROPPED_NAMESPACES = frozenset(f"{_CATEGORY_NAMES} {_FILE_NAMES}".split())


def prose_of(wikitext: str, dropped_namespaces: Iterable[str] = ()) -> str:
    """The prose of a page, a blank line between paragraphs.

    Links into `dropped_namespaces` (the wiki's names for files and categories, lower-case) are dropped with captions.
    """
    text = _COMMENT.sub("", wikitext)
    text = _NOWIKI.sub(lambda match: (match.group(1) or "").translate(_INACTIVE), text)
    text = _converted(_EMPTY_ELEMENT.sub("", text))
    num_elements = 1
    while num_elements:
        text, num_elements = _ELEMENT.subn("", text)
    text = _without_braces(_UNCLOSED_ELEMENT.sub("", text))
    # The parser is quadratic in unclosed markup, so it sees no tags and no brackets of external links.
    text = _TAG.sub("", _BREAK.sub(" ", text)).replace("<", "&#60;")
    text = _EXTERNAL_OPENING.sub("\x02", text.replace("\x02", ""))
    dropped = ALWAYS_DROPPED_NAMESPACES.union(dropped_namespaces)
    # Lists and headings are removed after links became text: a caption may hold a line that looks like a list.
    text = _without_links(text, dropped)
    text = _LINES.sub("", _EXTERNAL_LINK.sub(r"\1", text))
    text = _WIDE_GAP.sub(" ", _QUOTES.sub("", _MAGIC_WORD.sub("", text)))
    text = _without(_GAP_BEFORE_PARENTHESIS, _GAP_IN_PARENTHESES.sub("(", text))
    text = _without(_EMPTY_PARENTHESES, text)
    text = _GAP_BEFORE_STOP.sub("", text)
    return _INACTIVE_CHARACTER.sub(lambda match: _ACTIVE[match.group()], text).strip()


def _without(pattern: re.Pattern[str], text: str) -> str:
    """Cut out what matches, with a space in front of it."""
    kept: list[str] = []
    position = 0
    for match in pattern.finditer(text):
        start, end = match.span()
        has_space = start > position and text[start - 1] in " \xa0"
        kept.append(text[position : start - has_space])
        position = end
    return "".join([*kept, text[position:]]) if position else text


def _converted(text: str) -> str:
    """Replace text in several scripts by the first one that it names."""
    for _ in range(_CONVERSION_DEPTH):
        text, num_found = _CONVERSION.subn(lambda match: _first_variant(match.group(1)), text)
        if not num_found:
            break
    return text


def _first_variant(content: str) -> str:
    flags = _CONVERSION_FLAGS.match(content)
    if flags is not None:
        names = {name.strip() for name in flags.group(1).split(";")}
        if not _HIDING_FLAGS.isdisjoint(names):
            return ""
        content = content[flags.end() :]
        if "R" in names:
            return content
    first = _VARIANT.match(content)
    if first is None:
        return content
    following = _VARIANT.search(content, first.end())
    return content[first.end() : following.start() if following else len(content)].strip().removesuffix(";")


def _without_braces(text: str) -> str:
    """Cut out templates and tables with their contents.

    An unclosed table or file costs its first line, anything else that is unclosed costs nothing.
    """
    spans: list[tuple[int, int]] = []
    opened: list[tuple[str, int]] = []
    num_opened = dict.fromkeys(_OPENING.values(), 0)
    for match in _BRACES.finditer(text):
        brace = match.group()
        if len(brace) > 2:
            if brace[0] == "[":
                continue
            brace = brace.strip(" \t:*")
        if brace in num_opened:
            opened.append((brace, match.start()))
            num_opened[brace] += 1
            continue
        # What was opened inside and is still open is never closed.
        kind = ""
        while num_opened[_OPENING[brace]] and kind != _OPENING[brace]:
            kind, start = opened.pop()
            num_opened[kind] -= 1
            if kind == _OPENING[brace] and kind != "[[":
                spans.append((start, match.end()))
            elif kind != _OPENING[brace]:
                spans.append(_line_of_unclosed(text, kind, start))
    spans += [_line_of_unclosed(text, kind, start) for kind, start in opened]
    kept: list[str] = []
    position = 0
    for start, end in sorted(spans):
        if start >= position:
            kept.append(text[position:start])
        position = max(position, end)
    return "".join([*kept, text[position:]])


def _line_of_unclosed(text: str, kind: str, start: int) -> tuple[int, int]:
    if kind == "{|" or _FILE_LINK.match(text, start):
        end = text.find("\n", start)
        return start, len(text) if end < 0 else end
    return start, start


def _without_links(text: str, dropped: frozenset[str]) -> str:
    """Replace links by their labels, entities by their characters, headings by a break.

    Plain links, entities and headings are replaced here; what holds more markup goes to the parser, which is slow.
    """
    with_links = ""
    while text != with_links:
        with_links, text = text, _PLAIN_LINK.sub(lambda match: _plain_label(match, dropped), text)
    plain = _HEADING.sub("\n\n", text)
    if _needs_parser(plain):
        return _text_of(mwparserfromhell.parse(text, skip_style_tags=True), dropped)
    return _ENTITY.sub(_entity_character, _LEFT_BRACKETS.sub("", plain))


def _needs_parser(plain: str) -> bool:
    # The last one is a heading with text behind it.
    if any(markup in plain for markup in ("[[", "{{", "{|", "\n=")) or plain.startswith("="):
        return True
    if _WEB_ADDRESS_WITH_MARKUP.search(plain):
        return True
    lowered = plain.lower()
    return any(scheme in lowered for scheme in _BARE_SCHEMES) and _ADDRESS_WITH_MARKUP.search(plain) is not None


def _plain_label(match: re.Match[str], dropped: frozenset[str]) -> str:
    title, label = match.group(1).strip(), match.group(2)
    if _is_dropped(title, label is None, dropped):
        return ""
    shown = label or title.removeprefix(":")
    # With these a line could become a heading, and a title is trimmed after its entities are characters.
    return match.group() if "=" in shown or (not label and _ENTITY.search(shown)) else shown


def _entity_character(match: re.Match[str]) -> str:
    hexadecimal, decimal, name = match.groups()
    if name is not None:
        code = name2codepoint.get(name)
        if code is None:
            return match.group()
    else:
        code = int(hexadecimal, 16) if hexadecimal else int(decimal)
        if not 0 < code <= _LARGEST_CHARACTER:
            return match.group()
    return _shown(chr(code))


def _shown(character: str) -> str:
    """The character of an entity; markup characters stay entities until markup has been removed."""
    if character == "\xa0" or "\ud800" <= character <= "\udfff":
        return " "
    return character.translate(_INACTIVE_ENTITY)


def _text_of(wikicode: Wikicode, dropped: frozenset[str]) -> str:
    return "".join(_node_text(node, dropped) for node in wikicode.nodes)


def _node_text(node: Node, dropped: frozenset[str]) -> str:
    if isinstance(node, Text):
        return _LEFT_BRACKETS.sub("", node.value)
    if isinstance(node, Wikilink):
        return _link_text(node, dropped)
    if isinstance(node, ExternalLink):
        return _text_of(node.title, dropped) if node.title is not None else "" if node.brackets else str(node.url)
    if isinstance(node, HTMLEntity):
        return _shown(node.normalize())
    if isinstance(node, Tag):
        contents = _text_of(node.contents, dropped) if node.contents is not None else ""
        return f"{node.wiki_markup or ''}{contents}"
    # Templates, arguments (left by unbalanced braces) and comments are dropped; a heading leaves a break.
    return "\n\n" if type(node).__name__ == "Heading" else ""


def _link_text(link: Wikilink, dropped: frozenset[str]) -> str:
    if _is_dropped(str(link.title).strip(), link.text is None, dropped):
        return ""
    label = _text_of(link.text, dropped) if link.text is not None else ""
    return label or _text_of(link.title, dropped).strip().removeprefix(":")


def _is_dropped(title: str, has_no_label: bool, dropped: frozenset[str]) -> bool:
    namespace = title.partition(":")[0].strip().lower()
    if namespace in dropped or _MEDIA_TITLE.fullmatch(title):
        return True
    return has_no_label and _LANGUAGE_LINK.match(title) is not None
