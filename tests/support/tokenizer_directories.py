"""Directories of tokenizers whose files may contradict one another, and texts that show the difference."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken

from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.wordpiece.reference_tokenizer import build_tokenizer

PIECES = [
    *("daniel", "Daniel", "da", "Da", "##niel", "##n", "d", "D", "##a", "e", "é", "E", "É", "##e", "##é", "caf", "Caf"),
    *(
        "中",
        "文",
        "中文",
        "##文",
        "##中",
        ".",
        "-",
        "<",
        ">",
        "##>",
        "[",
        "]",
        "mask",
        "MASK",
        "x",
        "##x",
        "##1",
        "ent",
    ),
    *("i", "##i", "İ", "i̇", "ß", "ss", "##ß", "[unused1]"),
]
WORDS = [*SPECIAL_TOKENS, *PIECES]
ADDED = ["<ent>", "daniel-x", "Café", "中文x", "[X]", "ent"]

TEXTS = st.lists(
    st.sampled_from(
        [
            *PIECES,
            *ADDED,
            "DANIEL",
            "CAFÉ",
            "cafe\u0301",
            "\u0000",
            "\ufffd",
            "\u200b",
            "\u00ad",
            "\t",
            "\u3000",
            "　中",
        ]
    )
    | st.text(max_size=4),
    max_size=8,
).map(lambda parts: " ".join(parts)) | st.lists(st.sampled_from([*PIECES, *ADDED, "é", " "]), max_size=8).map("".join)

TRISTATE = st.sampled_from([True, False, None])


@st.composite
def added_tokens(draw: st.DrawFn) -> list[AddedToken]:
    names = draw(st.lists(st.sampled_from(ADDED), unique=True, max_size=3))
    return [
        AddedToken(
            name,
            special=draw(st.booleans()),
            normalized=draw(st.booleans()),
            lstrip=draw(st.booleans()),
            rstrip=draw(st.booleans()),
            single_word=draw(st.booleans()),
        )
        for name in names
    ]


@st.composite
def directories(draw: st.DrawFn) -> dict[str, Any]:
    """Files of a tokenizer, whose settings may contradict one another."""
    files: dict[str, Any] = {}
    kinds = draw(st.sampled_from(["both", "json", "text"]))
    if kinds != "json":
        files["vocab.txt"] = "".join(f"{word}\n" for word in WORDS)
    if kinds != "text":
        tokenizer = build_tokenizer(WORDS, draw(st.booleans()), draw(TRISTATE))
        tokenizer.add_tokens(draw(added_tokens()))
        contents = json.loads(tokenizer.to_str())
        contents["normalizer"]["handle_chinese_chars"] = draw(st.booleans())
        contents["normalizer"]["clean_text"] = draw(st.booleans())
        if draw(st.booleans()):
            contents["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        files["tokenizer.json"] = json.dumps(contents)
    if draw(st.booleans()) or kinds == "text":
        config: dict[str, Any] = {}
        for name, values in {
            "do_lower_case": st.booleans(),
            "strip_accents": TRISTATE,
            "tokenize_chinese_chars": st.booleans(),
            "never_split": st.just(["daniel", "Café"]),
            "do_basic_tokenize": st.booleans(),
            "model_max_length": st.sampled_from([3, 512]),
            "split_special_tokens": st.booleans(),
            "tokenizer_class": st.sampled_from(["BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast"]),
            "additional_special_tokens": st.lists(st.sampled_from(ADDED), unique=True, max_size=2),
            "mask_token": st.just("[MASK]"),
        }.items():
            if draw(st.booleans()):
                config[name] = draw(values)
        files["tokenizer_config.json"] = json.dumps(config)
    if draw(st.booleans()):
        files["added_tokens.json"] = json.dumps({draw(st.sampled_from(ADDED)): len(WORDS)})
    if draw(st.booleans()):
        files["special_tokens_map.json"] = json.dumps({"additional_special_tokens": ["<ent>"], "unk_token": "[UNK]"})
    return files
