"""The tokenizer that `tokenizers` builds from a vocabulary: the file tokenizer.json, and the oracle of `tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipelines.contract.schemas import CLS, CONTINUATION, SEP, SPECIAL_TOKENS, UNK
from pipelines.wordpiece.tokenizer_settings import AddedToken

MAX_CHARACTERS_PER_WORD = 100
"""Longer words become [UNK], as in `tokenizers` and `transformers`; the released code's limit is 200."""


def build_tokenizer(
    vocabulary: Sequence[str],
    lowercase: bool,
    strip_accents: bool | None,
    tokenize_chinese_chars: bool = True,
    added_tokens: Sequence[AddedToken] = (),
) -> Tokenizer:
    """The `tokenizers` object of a vocabulary, equal to `BertTokenizerFast` with the same settings.

    Args:
        vocabulary: entries and added tokens, by id.
    """
    outside = {token.id for token in added_tokens if not token.is_entry}
    ids = {token: index for index, token in enumerate(vocabulary) if index not in outside}
    tokenizer = Tokenizer(
        models.WordPiece(
            ids, unk_token=UNK, max_input_chars_per_word=MAX_CHARACTERS_PER_WORD, continuing_subword_prefix=CONTINUATION
        )
    )
    tokenizer.normalizer = build_normalizer(lowercase, strip_accents, tokenize_chinese_chars)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, ids[CLS]), (SEP, ids[SEP])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens([LibraryToken(token.content, **token.flags()) for token in added_tokens])
    for token in added_tokens:
        assert tokenizer.token_to_id(token.content) == token.id, token
    return tokenizer


def build_text_tokenizer(
    vocabulary: Sequence[str],
    lowercase: bool,
    strip_accents: bool | None,
    tokenize_chinese_chars: bool = True,
    added_tokens: Sequence[AddedToken] = (),
) -> Tokenizer:
    """As `build_tokenizer`, for a corpus: BERT's own special tokens in a text are text, added tokens are tokens."""
    plain = [token._replace(special=False) for token in added_tokens]
    tokenizer = build_tokenizer(vocabulary, lowercase, strip_accents, tokenize_chinese_chars, plain)
    tokenizer.encode_special_tokens = True
    return tokenizer


def build_normalizer(
    lowercase: bool, strip_accents: bool | None, tokenize_chinese_chars: bool = True
) -> normalizers.Normalizer:
    """BERT's clean-up: control characters dropped, CJK characters set apart, case and accents folded."""
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=tokenize_chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
