"""BERT's hidden states as features of any text, however long (paper, section 5.3), as a stream of Arrow batches.

A line longer than the encoder's positions is split into overlapping windows, and each token takes its vector from the
window in which it has most context (run_squad.py, `_check_is_max_context`). Windows are processed in groups of a
fixed number of tokens, so memory grows neither with the file nor with a line's vectors.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines.contract.errors import InputError
from training.bert.config_file import read_config
from training.bert.huggingface import load_into, read_weights
from training.bert.modeling import BertModel, hidden_states
from training.bert.packing import IntArray, pack
from training.finetuning.text import TextEncoder
from training.settings.model import ModelConfig
from training.stages.encoders import encoder_digest

Pool = Literal["concat", "mean", "cls", "tokens"]
POOLS: tuple[Pool, ...] = get_args(Pool)
FloatArray = npt.NDArray[np.float32]

GROUP_TOKENS = 16_384
"""Tokens of the windows that are computed together, sorted by length, before their rows are written."""
BATCH_TOKENS = 4_096
"""Tokens of one forward pass."""
_LINES_AT_ONCE = 256
_NUM_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class TokenizedLine:
    """A line's sub-tokens. input_ids: [tokens] uint32, without [CLS] and [SEP]; starts, ends: [tokens] int64, the
    characters (code points) of the line covered by a token; word_starts: [words] int64, each word's first token.
    """

    text: str
    input_ids: npt.NDArray[np.uint32]
    starts: IntArray
    ends: IntArray
    word_starts: IntArray


class LineTokenizer(TextEncoder):
    """The tokenizer of a directory, with offsets."""

    def framed(self, input_ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """`[CLS] ... [SEP]`."""
        return np.concatenate([self._cls, input_ids, self._sep])

    def tokens(self) -> dict[str, int]:
        """Ids by token."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    def vocabulary_sha256(self) -> str:
        """Hash of the tokens in the order of their ids, one per line, as in vocab.txt, even if it is missing."""
        ids = self.tokens()
        return hashlib.sha256("".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__)).encode()).hexdigest()

    def tokenize(self, lines: list[str]) -> list[TokenizedLine]:
        encodings = self._tokenizer.encode_batch(lines, add_special_tokens=False)
        return [_tokenized(line, encoding) for line, encoding in zip(lines, encodings, strict=True)]


def _tokenized(line: str, encoding: Any) -> TokenizedLine:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
    if not line.isascii():
        _extend_over_marks(line, starts, ends)
    word_ids = np.array(encoding.word_ids, dtype=np.int64)
    word_starts = np.flatnonzero(np.diff(word_ids, prepend=-1))
    return TokenizedLine(line, np.array(encoding.ids, dtype=np.uint32), starts, ends, word_starts)


def _extend_over_marks(line: str, starts: IntArray, ends: IntArray) -> None:
    """Extend each token over the combining marks after it, which an uncased tokenizer strips."""
    for index in range(len(ends)):
        limit = starts[index + 1] if index + 1 < len(starts) else len(line)
        end = int(ends[index])
        while end < limit and unicodedata.category(line[end]) in ("Mn", "Me"):
            end += 1
        ends[index] = end


class Window(NamedTuple):
    """Tokens `start` to `end` of a line, encoded together; `own_start` to `own_end` take their vectors here.

    The own tokens of a line's windows are consecutive, without gap or overlap.
    """

    start: int
    end: int
    own_start: int
    own_end: int


def windows_of(num_tokens: int, room: int) -> list[Window]:
    """Split a line into windows of `room` tokens, each half a window after the previous one.

    The last window is moved back to be full, so that all have one length and a token's context (the smaller of left
    and right) is largest in the window whose middle is nearest, the earlier one at a tie. A token that is not near an
    end of its line has at least a quarter of a window on both sides.
    """
    assert room >= 2, room
    if num_tokens <= room:
        return [Window(0, num_tokens, 0, num_tokens)]
    starts = [*range(0, num_tokens - room, room // 2), num_tokens - room]
    # The first token nearer to the next window's middle: left context there exceeds right context here.
    edges = [(left + right + room - 1) // 2 + 1 for left, right in pairwise(starts)]
    return [
        Window(start, start + room, own_start, own_end)
        for start, own_start, own_end in zip(starts, [0, *edges], [*edges, num_tokens], strict=True)
    ]


class _Piece(NamedTuple):
    """A window to encode; `is_last` marks the last window of its line."""

    row: int
    line: TokenizedLine
    window: Window
    is_last: bool

    @property
    def num_tokens(self) -> int:
        return self.window.end - self.window.start + _NUM_SPECIAL_TOKENS


class FeatureExtractor:
    """Turns lines into rows of features, by an encoder, a choice of layers and a pooling rule.

    One row is, by `pool`,
    `concat`: a sub-token; `tokens`: a word, with the vector of its first sub-token (paper, section 5.3);
    `mean`: a line, with the mean over its sub-tokens without [CLS] and [SEP], null if it has none;
    `cls`: a line, with the vector of [CLS], averaged over windows.
    A vector is the concatenation of the chosen layers, in the given order.
    """

    def __init__(
        self,
        model: BertModel,
        tokenizer: LineTokenizer,
        layers: IntArray,
        pool: Pool,
        max_seq_length: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Wrap a model in eval mode on `device`; `layers` as in `hidden_states`."""
        self._model, self._tokenizer, self._layers, self._pool = model, tokenizer, layers, pool
        self._room = max_seq_length - _NUM_SPECIAL_TOKENS
        self._device = torch.device(device)
        self.vector_size = len(layers) * model.embeddings.word_embeddings.embedding_dim
        self.schema = schema_of(pool, self.vector_size)

    def batches(self, lines: Iterable[str]) -> Iterator[pa.RecordBatch]:
        """Record batches in the lines' order, of at most GROUP_TOKENS rows plus one line's excess."""
        rows = _Rows(self._pool, self.vector_size, self.schema)
        group: list[_Piece] = []
        num_tokens = 0
        for piece in self._pieces(lines):
            if group and num_tokens + piece.num_tokens > GROUP_TOKENS:
                yield from rows.of(group, self._vectors(group))
                group, num_tokens = [], 0
            group.append(piece)
            num_tokens += piece.num_tokens
        if group:
            yield from rows.of(group, self._vectors(group))

    def line_vectors(self, lines: list[str]) -> FloatArray:
        """[lines, vector_size], for pools with one row per line; zeros if `mean` has no tokens."""
        assert self._pool in ("mean", "cls"), self._pool
        vectors = np.zeros((len(lines), self.vector_size), dtype=np.float32)
        for batch in self.batches(lines):
            known = batch.filter(pc.is_valid(batch["vector"]))
            flat = known["vector"].flatten().to_numpy()
            vectors[known["line"].to_numpy()] = flat.reshape(-1, self.vector_size)
        return vectors

    def _pieces(self, lines: Iterable[str]) -> Iterator[_Piece]:
        source = iter(lines)
        row = 0
        while some := list(islice(source, _LINES_AT_ONCE)):
            for line in self._tokenizer.tokenize(some):
                windows = windows_of(len(line.input_ids), self._room)
                for window in windows:
                    yield _Piece(row, line, window, window is windows[-1])
                row += 1

    @torch.no_grad()
    def _vectors(self, group: list[_Piece]) -> list[FloatArray]:
        """[tokens, vector_size] for each piece, [CLS] first and [SEP] last."""
        order = sorted(range(len(group)), key=lambda index: -group[index].num_tokens)
        result: list[FloatArray] = [np.empty((0, 0), np.float32)] * len(group)
        while order:
            count, num_tokens = 0, 0
            while count < len(order) and (not count or num_tokens + group[order[count]].num_tokens <= BATCH_TOKENS):
                num_tokens += group[order[count]].num_tokens
                count += 1
            chosen, order = order[:count], order[count:]
            lengths = np.array([group[index].num_tokens for index in chosen], dtype=np.int64)
            ids = [self._input_ids(group[index]) for index in chosen]
            packed = pack(np.concatenate(ids), lengths, lengths).to(self._device)
            vectors_TF = hidden_states(self._model, packed, self._layers.tolist()).float().cpu().numpy()
            for index, vectors in zip(chosen, np.split(vectors_TF, np.cumsum(lengths)[:-1]), strict=True):
                result[index] = vectors
        return result

    def _input_ids(self, piece: _Piece) -> npt.NDArray[np.uint32]:
        return self._tokenizer.framed(piece.line.input_ids[piece.window.start : piece.window.end])


def schema_of(pool: Pool, vector_size: int) -> pa.Schema:
    """line: number of the line, from 0; for sub-tokens and words also their text, characters `start` to `end`."""
    vector = pa.field("vector", pa.list_(pa.float32(), vector_size), nullable=pool == "mean")
    fields = [pa.field("line", pa.int64(), nullable=False)]
    if pool in ("concat", "tokens"):
        fields.append(pa.field("text", pa.string(), nullable=False))
        fields += [pa.field(name, pa.int64(), nullable=False) for name in ("start", "end")]
    return pa.schema([*fields, vector])


class _Rows:
    """Turns pieces and their vectors into rows; keeps the sum of a line whose windows are in several groups."""

    def __init__(self, pool: Pool, vector_size: int, schema: pa.Schema) -> None:
        self._pool, self._schema = pool, schema
        self._sum, self._count = np.zeros(vector_size, np.float64), 0

    def of(self, group: list[_Piece], vectors: list[FloatArray]) -> Iterator[pa.RecordBatch]:
        batch = self._per_line(group, vectors) if self._pool in ("mean", "cls") else self._per_token(group, vectors)
        if batch.num_rows:
            yield batch

    def _per_line(self, group: list[_Piece], vectors: list[FloatArray]) -> pa.RecordBatch:
        lines: list[int] = []
        means: list[npt.NDArray[np.float64]] = []
        known: list[bool] = []
        for piece, vectors_TF in zip(group, vectors, strict=True):
            own = vectors_TF[:1]
            if self._pool == "mean":
                own = _own(piece, vectors_TF)
            self._sum += own.sum(axis=0, dtype=np.float64)
            self._count += len(own)
            if piece.is_last:
                lines.append(piece.row)
                means.append(self._sum / max(self._count, 1))
                known.append(self._count > 0)
                self._sum, self._count = np.zeros_like(self._sum), 0
        mean = np.array(means, dtype=np.float32).reshape(-1, len(self._sum))
        return self._batch([pa.array(lines, pa.int64())], mean, ~np.array(known, dtype=bool))

    def _per_token(self, group: list[_Piece], vectors: list[FloatArray]) -> pa.RecordBatch:
        lines: list[IntArray] = []
        starts: list[IntArray] = []
        ends: list[IntArray] = []
        texts: list[str] = []
        taken: list[FloatArray] = []
        for piece, vectors_TF in zip(group, vectors, strict=True):
            line, window = piece.line, piece.window
            first, last = _spans(line, window, by_word=self._pool == "tokens")
            taken.append(_own(piece, vectors_TF)[first - window.own_start])
            starts.append(line.starts[first])
            ends.append(line.ends[last])
            lines.append(np.full(len(first), piece.row, dtype=np.int64))
            texts += [line.text[start:end] for start, end in zip(starts[-1], ends[-1], strict=True)]
        columns = [pa.array(np.concatenate(lines)), pa.array(texts, pa.string())]
        columns += [pa.array(np.concatenate(starts)), pa.array(np.concatenate(ends))]
        return self._batch(columns, np.concatenate(taken), None)

    def _batch(
        self, columns: list[pa.Array], vectors: FloatArray, unknown: npt.NDArray[np.bool_] | None
    ) -> pa.RecordBatch:
        kind = self._schema.field("vector").type
        mask = None if unknown is None else pa.array(unknown)
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind, mask=mask)
        return pa.RecordBatch.from_arrays([*columns, values], schema=self._schema)


def _own(piece: _Piece, vectors_TF: FloatArray) -> FloatArray:
    """The vectors of a window's own tokens; index 0 is [CLS]."""
    window = piece.window
    return vectors_TF[1 + window.own_start - window.start : 1 + window.own_end - window.start]


def _spans(line: TokenizedLine, window: Window, by_word: bool) -> tuple[IntArray, IntArray]:
    """First and last token of each row that starts in the window's own part; a word may end after it."""
    first = np.arange(window.own_start, window.own_end)
    if not by_word:
        return first, first
    begin, end = np.searchsorted(line.word_starts, [window.own_start, window.own_end])
    following = np.append(line.word_starts[begin + 1 : end + 1], len(line.input_ids))
    return line.word_starts[begin:end], following[: end - begin] - 1


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder in eval mode on a device, with its tokenizer."""

    model: BertModel
    config: ModelConfig
    vocab_size: int
    tokenizer: LineTokenizer
    digest: str
    device: torch.device


def load_encoder(directory: str, device: torch.device | str = "cpu") -> Encoder:
    """Read a Hugging Face BERT directory; heads and the pooler are ignored.

    Raises:
        InputError: it is not a BERT model that this code supports, or its vocabulary does not fit.
    """
    config, vocab_size = read_config(directory)
    if config.num_encoders > 1:
        raise InputError(f"{directory}: has two encoders; features are extracted from one, give another model")
    tokenizer = LineTokenizer(directory)
    if (highest := max(tokenizer.tokens().values())) >= vocab_size:
        raise InputError(
            f"{directory}: its vocabulary has the id {highest}, its config.json vocab_size = {vocab_size}; they belong "
            "to different models"
        )
    model = BertModel(config, vocab_size, with_pooler=False)
    state = {name.removeprefix("bert."): tensor for name, tensor in read_weights(directory).items()}
    load_into(model, state, directory)
    return Encoder(
        model.eval().to(device), config, vocab_size, tokenizer, encoder_digest(directory), torch.device(device)
    )


def chosen_length(max_seq_length: int | None, config: ModelConfig) -> int:
    """Tokens of a window with [CLS] and [SEP]; None means all positions of the encoder.

    Raises:
        InputError: it exceeds the encoder's positions, or is too small.
    """
    length = config.max_position_embeddings if max_seq_length is None else max_seq_length
    if not 4 <= length <= config.max_position_embeddings:
        raise InputError(
            f"--max-seq-length {length}: give 4 to {config.max_position_embeddings}, the encoder's positions"
        )
    return length
