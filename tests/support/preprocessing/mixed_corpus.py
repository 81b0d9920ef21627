"""Three sources of very different size with weights, and two more sets of examples."""

from __future__ import annotations

import random
from pathlib import Path

LETTERS = {"wiki": "abcdefgh", "novels": "ijklmnop", "law": "qrstuvwx"}
"""No letter is in two sources, so every token names its source."""
DOCUMENTS = {"wiki": 90, "novels": 20, "law": 5}
WEIGHTS = {"wiki": 0.5, "novels": 0.2, "law": 0.3}

RECIPE = """
[run]
name = "mixed"
workspace = "{workspace}"
workers = 1
[documents]
num_shards = 3
heldout_share = 0.15
{sources}
[vocabulary]
size = 300
[examples]
passes = 2
next_sentence = false
lengths = [{{max_seq_length = 32, max_predictions_per_seq = 5}}]
[[examples.sets]]
name = "expert"
sources = [{{name = "law", weight = 3}}, {{name = "novels", weight = 1}}]
masking = "dynamic_whole_word"
passes = 1
lengths = [{{max_seq_length = 48, max_predictions_per_seq = 7}}]
[[examples.sets]]
name = "plain"
masked_lm_prob = 0.3
sources = [{{name = "wiki"}}, {{name = "law"}}]
"""


def write_sources(root: Path) -> str:
    tables = []
    for name, letters in LETTERS.items():
        generator = random.Random(name)

        def word(generator: random.Random = generator, letters: str = letters) -> str:
            return "".join(generator.choices(letters, k=generator.randint(2, 5)))

        documents = [
            "\n".join(" ".join(word() for _ in range(8)) for _ in range(generator.randint(3, 12)))
            for _ in range(DOCUMENTS[name])
        ]
        (root / f"{name}.txt").write_text("\n\n".join(documents))
        tables.append(
            f'[[documents.sources]]\nname = "{name}"\nweight = {WEIGHTS[name]}\n'
            f'inputs = ["{root}/{name}.txt"]\ndocument_separator = "google-bert"\n'
        )
    return "".join(tables)
