from __future__ import annotations

import importlib
import os
import subprocess
import sys

# Before numpy and torch start their threads: small tests are fastest on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from hypothesis import settings
from jupyter_client.provisioning import KernelProvisionerFactory
from nbformat.v4 import new_code_cell, new_notebook

from lbutils.run import kernels, profiles

# `make test` looks at a few examples, the workflow at all, by --hypothesis-profile all.
settings.register_profile("all", deadline=None, max_examples=100)
settings.register_profile("few", deadline=None, max_examples=25)
settings.load_profile("few")

NAMES = ("red panda", "axolotl", "hot dog", "okapi", "sea otter")


def examples(number: int) -> int:
    """So many in the profile "all"; in another a share, but not fewer than that profile has."""
    share: int = settings.default.max_examples
    return max(min(number, share), number * share // 100)


# Notebooks that nbval checks have forked kernels, as where readers run them. Those that tests start
# import little, and have no use for what forks share.
kernels.fork_kernels()


@pytest.fixture(autouse=True)
def kernels_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that a test starts, and processes that it starts, are no forks."""
    factory = KernelProvisionerFactory.instance()
    monkeypatch.setenv(factory.default_provisioner_name_env, "local-provisioner")
    monkeypatch.setattr(factory, "default_provisioner_name", "local-provisioner")


@pytest.fixture
def full_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable by which `make test` shortens notebooks: it counts as a setting."""
    monkeypatch.delenv(profiles.VARIABLE, raising=False)


@dataclass
class CaptionedImages:
    """What learners ask of a split, with features passed beside it."""

    labels: np.ndarray
    names: tuple[str, ...]
    captions: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> CaptionedImages:
        """Some of the images, as `Split.take` gives them."""
        captions = tuple(self.captions[i] for i in rows)
        return replace(self, labels=self.labels[rows], captions=captions)

    def first(self, classes: int) -> CaptionedImages:
        """The images of the first classes, over their names alone."""
        kept = self.take(np.flatnonzero(self.labels < classes))
        return replace(kept, names=self.names[:classes])


@pytest.fixture(scope="session")
def captioned_images() -> CaptionedImages:
    labels = np.repeat(np.arange(len(NAMES)), 3)
    forms = ("a {}", "a drawing of a {}", "An emoji of a {}.")
    captions = tuple(forms[i % 3].format(NAMES[label]) for i, label in enumerate(labels))
    return CaptionedImages(labels, NAMES, captions)


@pytest.fixture(scope="session")
def image_views(captioned_images: CaptionedImages) -> Any:
    """Features (2, N, 32) that gather around a direction per class."""
    import torch

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(NAMES), 32, generator=generator)[captioned_images.labels]
    noise = torch.randn(2, len(captioned_images), 32, generator=generator)
    return torch.nn.functional.normalize(centres + 0.3 * noise, dim=-1)


def build_tiny(kind: str = "clip", **text: Any) -> Any:
    """A random open_clip model in float32: "clip", "custom" with its text tower apart, "coca"."""
    import open_clip
    import torch
    from open_clip.coca_model import CoCa, MultimodalCfg

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
    texts = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    if kind == "coca":
        vision |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        texts |= {"embed_cls": True, "output_tokens": True}
        decoder = MultimodalCfg(16, 49408, width=32, heads=2, layers=1)
        model = CoCa(32, decoder, {**texts, **text}, vision)
    else:
        family = {"clip": open_clip.CLIP, "custom": open_clip.CustomTextCLIP}[kind]
        model = family(32, vision, {**texts, **text})
    for parameter in model.parameters():
        # Biases and norms start at 0 and 1, where mistakes in them would not show.
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


@cache
def bpe_tokenizer(context_length: int = 16) -> Any:
    """open_clip's tokenizer; to make one takes longer than most tests."""
    import open_clip

    return open_clip.SimpleTokenizer(context_length=context_length)


def save_word_pieces(folder: Any, ends: tuple[str, str], pad: str = "") -> Any:
    """Folder with a tokenizer of transformers: words, letters, a start (or none) and an end."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = ends
    pad = pad or ("[PAD]" if start else end)
    letters = [chr(i) for i in range(33, 127) if not chr(i).isupper()]
    words = "the drawing of as animal red panda axo ##lotl ant hammer ##head shark sea".split()
    special = [token for token in dict.fromkeys(("[PAD]", "[UNK]", start, end)) if token]
    listed = [*special, *words, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate(listed)}
    core = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        f"{start} $A {end}".strip(), special_tokens=[(t, listed.index(t)) for t in special]
    )
    marks = {"unk_token": "[UNK]", "pad_token": pad, "sep_token": end}
    PreTrainedTokenizerFast(tokenizer_object=core, **marks).save_pretrained(folder)
    return folder


def save_bert(folder: Any) -> str:
    """Folder with a tiny BERT's configuration and tokenizer."""
    from transformers import BertConfig

    BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    ).save_pretrained(folder)
    return str(save_word_pieces(folder, ("[CLS]", "[SEP]")))


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: Any) -> Any:
    """Function from `build_tiny`'s arguments to a DualEncoder.

    Two kinds more: "bert", a text tower of transformers, and "siglip", without a causal mask or
    a start of text, whose end of text is also its padding.
    """
    from open_clip.tokenizer import HFTokenizer

    from lbutils.models.encoders import DualEncoder

    def make(kind: str = "clip", **text: Any) -> Any:
        tokenizer = bpe_tokenizer()
        family = kind
        if kind == "bert":
            folder = save_bert(tmp_path_factory.mktemp(kind))
            tokenizer = HFTokenizer(folder, context_length=16)
            text = {"hf_model_name": folder, "hf_model_pretrained": False, **text}
            family = "custom"
        elif kind == "siglip":
            folder = save_word_pieces(tmp_path_factory.mktemp(kind), ("", "</s>"))
            tokenizer = HFTokenizer(str(folder), context_length=16, clean="canonicalize")
            text = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, **text}
            family = "custom"
        model = build_tiny(family, **text)
        return DualEncoder(model, tokenizer, name=f"tiny {kind}", preprocess={"size": 32})

    return make


@pytest.fixture(scope="session")
def tiny_encoder(make_encoder: Any) -> Any:
    return make_encoder()


def save_notebook(path: Path, parameters: str, *sources: str, before: Sequence[Any] = ()) -> Path:
    """A notebook: the cells `before`, one with the parameters, then one of code for each source."""
    cells = [
        *before,
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, sources),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def load_script(name: str) -> Any:
    """A script of those that made the miniature, as a module; it may import its neighbours."""
    from lbutils.data.benchmark import data_dir

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(data_dir() / "mini" / "make")
        return importlib.import_module(name)


@pytest.fixture(scope="session")
def dose() -> Any:
    return load_script("dose")


@pytest.fixture(scope="session")
def pretrain() -> Any:
    return load_script("pretrain")
