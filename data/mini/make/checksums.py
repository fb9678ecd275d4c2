"""Write `checksums.csv`: the SHA-256 of every file of the miniature that the package reads."""

import csv
import hashlib
from pathlib import Path

DATA = Path(__file__).parent.parent
SUFFIXES = (".parquet", ".csv", ".json", ".safetensors")


def main() -> None:
    files = sorted(
        path.relative_to(DATA)
        for path in DATA.rglob("*")
        if path.suffix in SUFFIXES and path.name != "checksums.csv" and "make" not in path.parts
    )
    with (DATA / "checksums.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("file", "sha256"))
        for file in files:
            writer.writerow(
                (file.as_posix(), hashlib.sha256((DATA / file).read_bytes()).hexdigest())
            )
    print(f"{len(files)} files")


if __name__ == "__main__":
    main()
