"""The rivals that take labels, as rows of one table: `RIVALS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lbutils.learn.namelearner import NameLearner
from lbutils.models.prompts import Templates
from lbutils.rivals.adapters import (
    CLAP,
    CLIPAdapter,
    CrossModalProbe,
    LPPlusPlus,
    ProLIP,
    TaskRes,
    TipAdapter,
    TipAdapterF,
)
from lbutils.rivals.context import CoCoOp, CoOp, KgCoOp
from lbutils.rivals.probes import CONTROLS, GDA, Control, LinearProbe, Prototypes, SiM, ZeroShot


@dataclass(frozen=True)
class Rival:
    """A row of `RIVALS`; called, it makes the method, not fitted, with the options it has.

    Parameters
    ----------
    method : callable
        Its class.
    source : str
        The publication, or "negative control".
    fixed : mapping
        Options that make the row what it is. A function is called with ``shots`` and
        ``ip_names`` of the task.
    chosen, authors : mapping
        Further options, no defaults: as chosen on classes that encoders never met
        (``data/mini/selection_fewshot.csv``), and in their place the authors' own where they can
        be given here. A function is called as those of `fixed` are.
    control : str
        Which of `CONTROLS` its class names are replaced by, if any.
    """

    method: Callable[..., Any]
    source: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    authors: Mapping[str, Any] = field(default_factory=dict)
    control: str = ""

    def __call__(
        self,
        encoder: Any,
        templates: Templates = "mini",
        hint: str | None = None,
        shots: int = 4,
        seed: int = 0,
        ip_names: Sequence[str] = (),
    ) -> Any:
        """Method for a task: `shots` and `ip_names` are looked at where an option needs them."""
        options: dict[str, Any] = {"templates": templates, "hint": hint}
        if self.method is not ZeroShot:
            options["seed"] = seed
        for option, value in {**self.fixed, **self.chosen}.items():
            options[option] = value(shots, ip_names) if callable(value) else value
        made = self.method(encoder, **options)
        return Control(made, self.control, seed) if self.control else made

    def as_published(self) -> Rival:
        """The same row with the authors' options in place of the chosen ones."""
        return replace(self, chosen=self.authors)


# Variants of name learning are for the caller to add.
RIVALS: dict[str, Rival] = {
    "zero-shot": Rival(ZeroShot, "Radford et al., ICML 2021"),
    "CoOp": Rival(
        CoOp,
        "Zhou et al., IJCV 2022",
        chosen={"lr": 0.002, "steps": 2000, "ctx_init": None},
        authors={"suffix": ".", "optimizer": "sgd", "lr": 0.002},
    ),
    "CoOp, class contexts": Rival(
        CoOp,
        "Zhou et al., IJCV 2022; class-specific contexts",
        fixed={"class_specific": True},
        chosen={"lr": 0.02, "steps": 60, "ctx_init": "template"},
        authors={"suffix": ".", "optimizer": "sgd", "lr": 0.002},
    ),
    "CoCoOp": Rival(
        CoCoOp,
        "Zhou et al., CVPR 2022",
        chosen={"lr": 0.01, "steps": 2560, "batch_size": 1},
        authors={"optimizer": "sgd", "lr": 0.002, "batch_size": 1},
    ),
    "KgCoOp": Rival(
        KgCoOp,
        "Yao et al., CVPR 2023",
        chosen={"lr": 0.1, "steps": 2000, "weight": 0.5},
        authors={"optimizer": "sgd", "lr": 0.002},
    ),
    "CLIP-Adapter": Rival(
        CLIPAdapter, "Gao et al., IJCV 2024", chosen={"ratio": 1.0, "lr": 0.01, "steps": 100}
    ),
    "TaskRes": Rival(
        TaskRes,
        "Yu et al., CVPR 2023",
        chosen={"alpha": 0.5, "lr": 0.01, "steps": 200},
        authors={"alpha": 0.5, "lr": 0.002},
    ),
    "Tip-Adapter": Rival(
        TipAdapter,
        "Zhang et al., ECCV 2022",
        chosen={"alpha": 100.0, "beta": 5.5},
        authors={"background": False},
    ),
    "Tip-Adapter-F": Rival(
        TipAdapterF,
        "Zhang et al., ECCV 2022",
        chosen={"alpha": 100.0, "beta": 1.0, "lr": 0.001, "steps": 20},
        authors={"background": False},
    ),
    "linear probe": Rival(LinearProbe, "Radford et al., ICML 2021; C fixed"),
    "linear probe, C searched": Rival(
        LinearProbe,
        "Radford et al., ICML 2021; search of CoOp's lpclip",
        fixed={"C": "search"},
    ),
    "LP++": Rival(
        LPPlusPlus,
        "Huang et al., CVPR 2024",
        chosen={"start": 30.0, "steps": 100, "accumulate": True},
        authors={"steps": 300, "accumulate": True},
    ),
    "CLAP": Rival(
        CLAP,
        "Silva-Rodriguez et al., CVPR 2024",
        chosen={"constraint": 1.0, "lr": 0.01, "steps": 100},
        authors={"steps": 300, "unit": False},
    ),
    "cross-modal probe": Rival(
        CrossModalProbe,
        "Lin et al., CVPR 2023",
        chosen={"lr": 0.1, "steps": 200},
        authors={"steps": 12_800},
    ),
    # One row a name, drawn to the image features of its class alone: no other name is looked at.
    "textual inversion": Rival(
        NameLearner,
        "Gal et al., ICLR 2023; with CLIP: Baldrati et al., ICCV 2023",
        fixed={
            "init": 1,
            "name_weight": 0.0,
            "stand_in_weight": 0.0,
            "anchor_weight": 1.0,
            "min_rows": 1,
        },
        chosen={"lr": 0.2, "steps": 100, "optimizer": "adam"},
        authors={"optimizer": "adamw", "lr": 0.02, "steps": 350},
    ),
    "GDA": Rival(
        GDA, "Wang et al., ICLR 2024", chosen={"alpha": 21.5}, authors={"background": False}
    ),
    "ProLIP": Rival(
        ProLIP,
        "Fahes et al., arXiv:2410.05270",
        chosen={"penalty": 0.0, "lr": 0.03, "steps": 3000},
        authors={"steps": 300},
    ),
    "prototypes": Rival(Prototypes, "Snell et al., NeurIPS 2017"),
    "SiM": Rival(
        SiM,
        "Zanella et al., CVPR workshops 2025",
        fixed={"prompts": lambda shots, ip_names: ip_names},
        chosen={"ridge": 1e-5},
    ),
    **{
        f"zero-shot, {kind} names": Rival(ZeroShot, "negative control", control=kind)
        for kind in CONTROLS
    },
}
