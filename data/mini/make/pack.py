"""Put encoders into the miniature with weights in eight bits, and write what that costs.

    python data/mini/make/pack.py FOLDER [FOLDER ...]

Each folder is one that `pretrain.py` wrote; it goes to `data/mini/encoder/` under its own name.
The cost is measured on the validation drawings, in `data/results/eight_bits.csv`: zero-shot
accuracy with float16 and with eight bits, in per cent, how many predictions agree, and the
smallest cosine between the image features of both.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pandas as pd
import pretrain as P
import torch
from safetensors.torch import load_file, save_file

from lbutils import load_encoder
from lbutils._util import write_text
from lbutils.data.benchmark import data_dir
from lbutils.models import mini

WHOLE = "open_clip_model.safetensors"
RESULTS = data_dir() / "results" / "eight_bits.csv"


def pack(source: Path, target: Path) -> None:
    """Copy an encoder's folder, its weights in eight bits in the place of float16 ones."""
    target.mkdir(parents=True, exist_ok=True)
    for name in P.ENCODER_FILES:
        if name != WHOLE:
            shutil.copyfile(source / name, target / name)
    packed = mini.to_eight_bits(load_file(source / WHOLE))
    P.write(target / mini.EIGHT_BIT_FILE, lambda path: save_file(packed, path, {"format": "pt"}))
    (target / WHOLE).unlink(missing_ok=True)


@torch.no_grad()
def cost(before: Path, after: Path, held_out: P.Validation) -> dict[str, object]:
    """A row of the table of costs."""
    accuracy, features, guesses = [], [], []
    for folder in (before, after):
        encoder = load_encoder(f"local-dir:{folder}", device="cpu")
        accuracy.append(100 * P.zero_shot(encoder.model, encoder.tokenizer, held_out, "cpu"))
        encoder.model.eval()
        images = torch.cat(
            [encoder.model.encode_image(x, normalize=True) for x in held_out.pixels.split(256)]
        )
        texts = mini.encode_text(encoder.model, encoder.tokenizer(held_out.names))
        features.append(images)
        guesses.append((images @ torch.nn.functional.normalize(texts, dim=-1).T).argmax(1))
    return {
        "encoder": before.name,
        "val_zero_shot_float16": round(accuracy[0], 2),
        "val_zero_shot_eight_bits": round(accuracy[1], 2),
        "same_predictions": round(100 * (guesses[0] == guesses[1]).double().mean().item(), 2),
        "least_cosine": round((features[0] * features[1]).sum(1).min().item(), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    data = data_dir() / "mini"
    held_out = P.load_validation(data)
    known = pd.read_csv(RESULTS).to_dict("records") if RESULTS.is_file() else []
    for folder in parser.parse_args().folders:
        target = data / "encoder" / folder.name
        if folder.resolve() == target.resolve():
            raise SystemExit(f"{folder} is where the packed encoder goes: give a copy of it")
        pack(folder, target)
        known = [row for row in known if row["encoder"] != folder.name]
        known.append(cost(folder, target, held_out))
        table = pd.DataFrame(known).sort_values("encoder")
        write_text(RESULTS, table.to_csv(index=False, lineterminator="\n"))
        P.certify(target, data)
    print(pd.DataFrame(known).to_string(index=False))


if __name__ == "__main__":
    main()
