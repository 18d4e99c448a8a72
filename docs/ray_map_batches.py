"""Translate a folder of pictures with Ray Data, one translator in each worker:

python docs/ray_map_batches.py BUNDLE PICTURES OUT.parquet --size 128

Pictures of other sizes are resized when they are read, so that a batch is one array. The rows are what
`Translator(BUNDLE).images(...)` gives for the same arrays.
"""

import argparse
from typing import Any

import numpy as np
import ray
from rfp.runtime import FlowOptions, Translator


class Translate:
    """A worker's state: the bundle is opened once, at the first batch."""

    def __init__(self, translator: Translator) -> None:
        self.translator = translator

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "image": np.stack(list(self.translator.images(batch["image"])))}


def translated(dataset: "ray.data.Dataset", translator: Translator, workers: int, batch_size: int = 64) -> Any:
    """A dataset like `dataset`, whose column `image` (uint8 [H, W, 3], all of one size) is translated."""
    return dataset.map_batches(
        Translate,
        fn_constructor_args=(translator,),
        batch_size=batch_size,
        concurrency=workers,
        num_cpus=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("pictures")
    parser.add_argument("out")
    parser.add_argument("--size", type=int, default=128, help="pixels of both sides")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    pictures = ray.data.read_images(args.pictures, size=(args.size, args.size), mode="RGB", include_paths=True)
    # One thread for the net: Ray gives each worker one core.
    translator = Translator(args.bundle, FlowOptions(size="native", threads=1))
    translated(pictures, translator, args.workers).write_parquet(args.out)


if __name__ == "__main__":
    main()
