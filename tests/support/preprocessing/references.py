"""Slow, obviously right versions of what `pipelines` compiles: plain lists, plain loops."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

BITS = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & BITS
    return value ^ (value >> 31)


def derive_key(key: int, part: int) -> int:
    return mix((key + GAMMA * (part + 1)) & BITS)


class Stream:
    """The random stream of `pipelines.seeding`, in Python integers."""

    def __init__(self, key: int):
        self.key, self.counter = key, 0

    def bits(self) -> int:
        self.counter += 1
        return mix((self.key + self.counter * GAMMA) & BITS)

    def uniform(self) -> float:
        return (self.bits() >> 11) / (1 << 53)

    def below(self, bound: int) -> int:
        return ((self.bits() >> 32) * bound) >> 32


Pair = tuple[list[int], list[int], int]


def pairs_of_document(
    documents: list[list[list[int]]], index: int, stream: Stream, max_seq_length: int, short_seq_prob: float
) -> list[Pair]:
    """`create_instances_from_document` with lists of sentences, for shards of at least two documents."""
    document = documents[index]
    max_num_tokens = max_seq_length - 3
    target_seq_length = max_num_tokens
    if stream.uniform() < short_seq_prob:
        target_seq_length = 2 + stream.below(max_num_tokens - 1)
    pairs: list[Pair] = []
    current_chunk: list[list[int]] = []
    i = 0
    while i < len(document):
        current_chunk.append(document[i])
        if i == len(document) - 1 or sum(map(len, current_chunk)) >= target_seq_length:
            a_end = 1
            if len(current_chunk) >= 2:
                a_end = 1 + stream.below(len(current_chunk) - 1)
            tokens_a = [token for sentence in current_chunk[:a_end] for token in sentence]
            tokens_b: list[int] = []
            is_random_next = len(current_chunk) == 1 or stream.uniform() < 0.5
            if is_random_next:
                target_b_length = target_seq_length - len(tokens_a)
                others = [other for number, other in enumerate(documents) if number != index]
                random_document = others[stream.below(len(others))]
                for sentence in random_document[stream.below(len(random_document)) :]:
                    tokens_b.extend(sentence)
                    if len(tokens_b) >= target_b_length:
                        break
                i -= len(current_chunk) - a_end
            else:
                tokens_b = [token for sentence in current_chunk[a_end:] for token in sentence]
            while len(tokens_a) + len(tokens_b) > max_num_tokens:
                longer = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
                del longer[0 if stream.uniform() < 0.5 else -1]
            pairs.append((tokens_a, tokens_b, int(is_random_next)))
            current_chunk = []
        i += 1
    return pairs


def full_sentence_rows(
    documents: list[list[list[int]]], document_keys: list[int], order_key: int, max_seq_length: int
) -> list[tuple[list[list[int]], int, int]]:
    """RoBERTa's "full-sentences": each row's pieces (one a document), the document it begins in, and at which token."""
    order = sorted(range(len(documents)), key=lambda index: derive_key(order_key, document_keys[index]))
    # Everything to place, in order: (document, place of its first token, tokens).
    units = []
    for index in order:
        place = 0
        for sentence in documents[index]:
            for start in range(0, len(sentence), max_seq_length - 2):
                unit = sentence[start : start + max_seq_length - 2]
                units.append((index, place, unit))
                place += len(unit)
    rows: list[list[tuple[int, int, list[int]]]] = []
    for unit in units:
        if rows:
            candidate = [*rows[-1], unit]
            separators = sum(one[0] != other[0] for one, other in pairwise(candidate))
            if 2 + separators + sum(len(tokens) for _, _, tokens in candidate) <= max_seq_length:
                rows[-1] = candidate
                continue
        rows.append([unit])
    result = []
    for row in rows:
        pieces: list[list[int]] = []
        for number, (index, _, tokens) in enumerate(row):
            if number == 0 or row[number - 1][0] != index:
                pieces.append([])
            pieces[-1].extend(tokens)
        result.append((pieces, row[0][0], row[0][1]))
    return result


def masked(
    pieces: list[list[int]],
    stream: Stream,
    masked_lm_prob: float,
    max_predictions: int,
    whole_word: bool,
    special: dict[str, int],
    continuations: set[int],
    vocabulary_size: int,
) -> tuple[list[int], list[int], list[int]]:
    """`create_masked_lm_predictions`: ids after masking, positions and labels; `pieces` are separated by [SEP]."""
    ids = [special["cls"]]
    candidates: list[list[int]] = []
    for piece in pieces:
        for place, token in enumerate(piece):
            if whole_word and token in continuations and place > 0:
                candidates[-1].append(len(ids))
            else:
                candidates.append([len(ids)])
            ids.append(token)
        ids.append(special["sep"])
    wanted = min(max_predictions, max(1, round(len(ids) * masked_lm_prob)))
    chosen: list[int] = []
    order = list(range(len(candidates)))
    for index in range(len(order)):
        if len(chosen) >= wanted:
            break
        other = index + stream.below(len(order) - index)
        order[index], order[other] = order[other], order[index]
        group = candidates[order[index]]
        if len(chosen) + len(group) <= wanted:
            chosen.extend(group)
    positions = sorted(chosen)
    labels = [ids[position] for position in positions]
    for position in positions:
        if stream.uniform() < 0.8:
            ids[position] = special["mask"]
        elif stream.uniform() >= 0.5:
            ids[position] = stream.below(vocabulary_size)
    return ids, positions, labels


def train_wordpiece(word_counts: dict[str, int], start: list[str], size: int, min_count: int) -> list[str]:
    """Byte-pair merges recounted from scratch each time. `start`: special tokens and alphabet, in id order."""
    tokens = list(start)
    ids = {token: number for number, token in enumerate(tokens)}
    words = {
        word: [ids[character if place == 0 else "##" + character] for place, character in enumerate(word)]
        for word in word_counts
    }
    while len(tokens) < size:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += word_counts[word]
        if not pairs:
            break
        (left, right), count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < min_count:
            break
        token = tokens[left] + tokens[right].removeprefix("##")
        merged = ids.setdefault(token, len(tokens))
        if merged == len(tokens):
            tokens.append(token)
        for word, symbols in words.items():
            place, result = 0, []
            while place < len(symbols):
                together = symbols[place : place + 2] == [left, right]
                result.append(merged if together else symbols[place])
                place += 2 if together else 1
            words[word] = result
    return tokens
