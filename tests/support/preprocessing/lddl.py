"""The functions of LDDL 0.1.0, a peer of benchmarks, installed into build/ without its dependencies."""

from __future__ import annotations

import sys
import types
from typing import Any

from tests.support.peers import installed


def lddl_functions() -> Any:
    """LDDL's BERT module; its imports for reading and for Dask are not called and are replaced by stubs."""
    sys.path.insert(0, str(installed("lddl==0.1.0")))
    for name in ("dask", "dask.bag", "dask.distributed", "dask.dataframe", "nltk", "lddl.dask.readers"):
        sys.modules[name] = types.ModuleType(name)
    for name in ("lddl.dask.bert.binning", "lddl.download.utils"):
        sys.modules[name] = types.ModuleType(name)
    for module, names in {
        "lddl.dask.readers": [
            "read_wikipedia",
            "read_books",
            "read_common_crawl",
            "split_id_text",
            "estimate_block_size",
        ],
        "lddl.dask.bert.binning": ["to_textfiles_binned", "to_dataframe_binned", "to_parquet_binned"],
        "lddl.download.utils": ["parse_str_of_num_bytes"],
    }.items():
        for name in names:
            setattr(sys.modules[module], name, None)
    from lddl.dask.bert import pretrain

    return pretrain
