"""Draws the README's picture: one illustrated instruction by ``blocks``, sentences under the pictures.

python -m tools.blocks.illustration --out docs/instruction.png
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from matplotlib import pyplot
from PIL import Image

import fastdecode
from fastdecode.cli.demo import GOALS, GUIDANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goal", default=GOALS[-1])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/instruction.png"))
    args = parser.parse_args()
    model, processor = fastdecode.load("blocks")
    inputs = processor(text=args.goal, return_tensors="pt")
    out = fastdecode.generate(
        model,
        **inputs,
        multimodal_generation_mode="interleaved-text-image",
        guidance=GUIDANCE,
        image={"temperature": 0.7, "top_p": 0.9},
        max_new_tokens=440,
        seed=args.seed,
    )
    [document] = fastdecode.to_documents(model, processor, out, start=inputs["input_ids"].shape[1])
    pictures = [part for part in document if isinstance(part, Image.Image)]
    figure, axes = pyplot.subplots(1, len(pictures), figsize=(2.3 * len(pictures), 3.0), squeeze=False)
    said = ""
    drawn = iter(axes[0])
    for part in document:
        if isinstance(part, str):
            said = part
            continue
        axis = next(drawn)
        axis.imshow(part, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title("\n".join(textwrap.wrap(said, 26)), fontsize=9, y=-0.3)
    figure.suptitle(args.goal, fontsize=10)
    figure.tight_layout()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
