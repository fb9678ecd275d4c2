"""The paper's two propositions (section 5.1), as far as they can be measured.

Both are informal in the paper, with proofs in an appendix that is not at hand. Proposition 1
(eq. 3) bounds the risk over IP and OOP classes after name tuning by a sum of terms, some of which
nobody can measure; `bound_terms` gives the others. Proposition 2 says that uninformative OOP name
embeddings leave nothing for prompts and adapters to work with; `uninformative_names` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from tqdm.auto import tqdm

from lbutils.data.benchmark import join
from lbutils.measure.metrics import joint_accuracy
from lbutils.models.classifier import logits, text_classifier
from lbutils.models.features import image_features
from lbutils.rivals.probes import control_names

AS_THEY_ARE, LEARNED = "as they are", "learned"
KINDS = ("permuted", "random")  # of `control_names`
DELTA = 0.05  # the bound holds with probability 1 - DELTA


def learned_names(
    encoder: Any,
    benchmark: Mapping[str, Any],
    learner: Callable[..., Any],
    *,
    templates: Any = "mini",
    shots: int = 4,
    draw: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """What a learner makes of the few OOP images of each domain, by the domain's name.

    `learner` (callable) is called as `RIVALS` are, with the IP names as ``ip_names``, and makes
    what is fitted; the rest is as in `uninformative_names`. Both propositions ask the same names.
    """
    found = {}
    for domain in benchmark.values():
        task = {"templates": templates, "hint": domain.hint, "shots": shots, "seed": seed}
        own = learner(encoder, ip_names=domain.ip.names, **task)
        found[domain.name] = own.fit(domain.oop.few_shot(shots, draw))
    return found


def uninformative_names(
    encoder: Any,
    benchmark: Mapping[str, Any],
    methods: Mapping[str, Callable[..., Any]],
    learned: Mapping[str, Any],
    *,
    templates: Any = "mini",
    shots: int = 4,
    draw: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Prompts and adapters trained on IP classes, beside OOP names that say more or less.

    Parameters
    ----------
    encoder : DualEncoder
    benchmark : mapping of str to Domain
    methods : mapping
        As in `RIVALS`: called with the encoder and a task, they make what is fitted on few IP
        images and then meets the OOP names that it was not trained on.
    learned : mapping
        What learned the OOP names of each domain themselves, from as many OOP images; see
        `learned_names`.
    templates : str or sequence of str
    shots, draw : int
        Of the committed few-shot draws.
    seed : int
        Of the made-up names and of training.

    Returns
    -------
    DataFrame
        A row a domain, method and kind of OOP names ("as they are", those of `KINDS`, and
        "learned"): ``ip_separate``, ``oop_separate``, ``ip_joint``, ``oop_joint`` in per cent, and
        ``told_apart``, the area under the ROC curve with which the highest OOP logit less the
        highest IP logit tells OOP images from IP images (50 is chance).
    """
    rows = []
    for domain in tqdm(benchmark.values(), "domains", disable=not progress):
        ip, oop = domain.ip, domain.oop
        tests, n_ip = join(ip.test, oop.test), len(ip.names)
        features = image_features(encoder, tests).cpu()
        task = {"templates": templates, "hint": domain.hint, "shots": shots, "seed": seed}
        kinds = {AS_THEY_ARE: tuple(oop.names)}
        kinds |= {kind: control_names(oop.names, kind, seed) for kind in KINDS}
        for method, make in methods.items():
            fitted = make(encoder, ip_names=oop.names, **task).fit(ip.few_shot(shots, draw))
            for kind, names in kinds.items():
                joint = fitted.joint_logits(features, names).numpy()
                # `joint_logits` sets the names that were not learned first.
                joint = np.roll(joint, n_ip, axis=1)
                rows.append((domain.name, method, kind, *_scores(joint, tests.labels, n_ip)))
        joint = learned[domain.name].joint_logits(features, ip.names).numpy()
        rows.append((domain.name, "names", LEARNED, *_scores(joint, tests.labels, n_ip)))
    return pd.DataFrame(rows, columns=["domain", "method", "names", *_SCORES])


_SCORES = ("ip_separate", "oop_separate", "ip_joint", "oop_joint", "told_apart")


def _scores(joint: np.ndarray, labels: np.ndarray, n_ip: int) -> list[float]:
    found = joint_accuracy(joint, labels, n_ip)
    apart = joint[:, n_ip:].max(1) - joint[:, :n_ip].max(1)
    values = [*(found[score] for score in _SCORES[:-1]), roc_auc_score(labels >= n_ip, apart)]
    return [100 * value for value in values]


def bound_terms(
    encoder: Any,
    benchmark: Mapping[str, Any],
    learned: Mapping[str, Any],
    *,
    templates: Any = "mini",
    shots: int = 4,
    draw: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """The measurable terms of the bound of eq. 3 in each domain, beside the risk that they bound.

    Parameters are those of `uninformative_names`; `learned` is of the same `shots` and `draw`.

    Returns
    -------
    DataFrame
        A row a domain, risks as shares of images:

        ``risk_ip`` : the encoder's error on IP training images, over IP names
        ``risk_oop`` : error on the few OOP images from which names were learned, over OOP names
        ``gap`` : half of the proxy A-distance between IP training images and the few OOP images
        (Ben-David et al., 2010), 2 (1 - 2 e) / 2 with e the five-fold error of a logistic
        regression that tells them apart, classes weighted alike
        ``samples`` : the three last terms of eq. 3, with delta = 0.05
        ``sum`` : all four
        ``risk`` : error on IP and OOP test images, over the joint vocabulary

    Notes
    -----
    Not measurable, and left out: the distances of both towers from ideal ones and both Rademacher
    complexities. The paper does not say which distance between distributions it means; this is
    the one that can be computed.
    """
    rows = []
    for domain in tqdm(benchmark.values(), "domains", disable=not progress):
        ip, oop = domain.ip, domain.oop
        drawn, own = oop.few_shot(shots, draw), learned[domain.name]
        met = image_features(encoder, ip.train).cpu()
        few = image_features(encoder, drawn).cpu()
        named = text_classifier(encoder, ip.names, templates, domain.hint)
        guess = logits(met, named, encoder.logit_scale).argmax(1).numpy()
        tests = join(ip.test, oop.test)
        features = image_features(encoder, tests).cpu()
        joint = own.joint_logits(features, ip.names).argmax(1).numpy()
        row = {
            "domain": domain.name,
            "risk_ip": np.mean(guess != ip.train.labels),
            "risk_oop": np.mean(own.predict(few) != drawn.labels),
            "gap": half_a_distance(met, few),
            "samples": sample_terms(len(ip.train), len(drawn)),
        }
        row["sum"] = sum(value for key, value in row.items() if key != "domain")
        rows.append(row | {"risk": np.mean(joint != tests.labels)})
    return pd.DataFrame(rows)


def half_a_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Half of the proxy A-distance of two sets of features ``(N, D)``: 0 if alike, 1 if apart."""
    features = torch.cat([one, other]).numpy()
    labels = np.repeat([0, 1], [len(one), len(other)])
    judge = LogisticRegression(max_iter=1000, class_weight="balanced")
    guess = cross_val_predict(judge, features, labels, cv=5)
    error = np.mean([np.mean(guess[labels == side] != side) for side in (0, 1)])
    return max(0.0, 1 - 2 * float(error))


def sample_terms(n_ip: int, n_oop: int, delta: float = DELTA) -> float:
    """The last three terms of eq. 3, of numbers of samples."""
    each = sum(1.5 * np.sqrt(np.log(4 / delta) / (2 * n)) for n in (n_ip, n_oop))
    return float(each + 0.5 * np.sqrt(np.log(4 / delta) / 2 * (1 / n_ip + 1 / n_oop)))
