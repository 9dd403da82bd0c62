"""Measures what ``blocks`` draws and says, with the rule-based recogniser; writes a table, a plot and the figures.

    python -m tools.blocks.evaluate --model fastdecode/assets/blocks --out tools/blocks/results

What is measured, on prompts drawn with a seed of their own
(the world is small: training saw many of the same scenes and goals):
  match      the drawn scene is the one of the prompt ("Draw: …"), at several guidance scales (two-way),
             temperature 0.85 and top_p 0.97: enough to leave out noise, too little to leave out wrong attributes
  step       picture i shows what sentence i, as the model wrote it, does to picture i-1 (three-way guidance,
             1.5 on text and 1.2 on pictures; temperature 0.7 and top_p 0.9, as for edits)
  goal       the last picture of an illustrated instruction is the goal
  caption    the greedy description of a picture is its caption, word for word
  edit       the drawn scene is the given one after the instruction
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import random
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import fastdecode
from fastdecode.cli.demo import GUIDANCE
from fastdecode.models.quantise import quantise
from tools.blocks import world
from tools.blocks.recogniser import follow, recognise

SCALES = (1.0, 1.25, 1.5, 1.75, 2.0, 3.0, 4.0, 6.0)
THREE_WAY = GUIDANCE
PICTURE = {"temperature": 0.7, "top_p": 0.9}
UNCERTAIN = {"temperature": 0.85, "top_p": 0.97}
BATCH = 50


class Examiner:
    """Asks the model in batches and reads its pictures."""

    def __init__(self, path: str, seed: int, weights: str | None = None) -> None:
        options = {"dtype": torch.bfloat16} if weights == "bfloat16" else {}
        self.model, self.processor = fastdecode.load(path, **options)
        if weights in ("int8", "int4"):
            quantise(self.model, weights)
        self.seed = seed

    def ask(self, prompts: list[str], pictures: list[Image.Image] | None = None, **options: Any) -> list[list[Any]]:
        documents = []
        for i in range(0, len(prompts), BATCH):
            inputs = self.processor(
                text=prompts[i : i + BATCH],
                images=pictures[i : i + BATCH] if pictures else None,
                padding=True,
                return_tensors="pt",
            )
            seeds = [self.seed * 1_000_003 + i + j for j in range(len(inputs["input_ids"]))]
            out = fastdecode.generate(self.model, **inputs, seed=seeds, **options)
            length = inputs["input_ids"].shape[1]
            documents += fastdecode.to_documents(self.model, self.processor, out, start=length)
        return documents

    def scenes(self, documents: list[list[Any]]) -> list[world.Scene | None]:
        """What the only picture of each document shows."""
        return [recognise(d[0]) if len(d) == 1 and isinstance(d[0], Image.Image) else None for d in documents]

    def match(self, scale: float, count: int) -> float:
        rng = random.Random(self.seed)
        wanted = [world.random_scene(rng) for _ in range(count)]
        drawn = self.scenes(
            self.ask(
                [world.drawing_prompt(scene) for scene in wanted],
                multimodal_generation_mode="image-only",
                guidance=scale,
                image=UNCERTAIN,
            )
        )
        return sum(d == w for d, w in zip(drawn, wanted, strict=True)) / count

    def instructions(self, count: int) -> tuple[float, float, int]:
        """Share of faithful steps, share of goals reached, and number of steps."""
        rng = random.Random(self.seed + 1)
        goals = [world.random_goal(rng) for _ in range(count)]
        documents = self.ask(
            [goal.sentence for goal in goals],
            multimodal_generation_mode="interleaved-text-image",
            guidance=THREE_WAY,
            text={"do_sample": False},
            image=PICTURE,
            max_new_tokens=440,
        )
        faithful = steps = reached = 0
        for goal, document in zip(goals, documents, strict=True):
            scene: world.Scene | None = world.EMPTY
            sentence = ""
            for part in document:
                if isinstance(part, str):
                    sentence = part
                    continue
                after = recognise(part)
                steps += 1
                faithful += scene is not None and after in follow(scene, sentence)
                scene = after
            reached += scene == goal.steps[-1].scene
            steps += max(0, len(goal.steps) - sum(isinstance(part, Image.Image) for part in document))
        return faithful / steps, reached / count, steps

    def captions(self, count: int) -> float:
        rng = random.Random(self.seed + 2)
        scenes = [world.random_scene(rng) for _ in range(count)]
        said = self.ask([world.CAPTION_PROMPT] * count, [world.draw(s) for s in scenes], max_new_tokens=100)
        return sum(d == [world.describe(s)] for d, s in zip(said, scenes, strict=True)) / count

    def edits(self, count: int) -> float:
        rng = random.Random(self.seed + 3)
        cases = [world.random_edit(rng) for _ in range(count)]
        drawn = self.scenes(
            self.ask(
                [f"<image>{instruction}" for _, instruction, _ in cases],
                [world.draw(before) for before, _, _ in cases],
                multimodal_generation_mode="image-only",
                guidance=THREE_WAY,
                image=PICTURE,
            )
        )
        return sum(d == after for d, (_, _, after) in zip(drawn, cases, strict=True)) / count


def plot(match: dict[float, float], file: Path, count: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    axes.plot(list(match), [100 * share for share in match.values()], "o-", color="#1e60c8")
    axes.set(xlabel="guidance scale", ylabel="pictures that match their text (%)")
    axes.set_title(f"blocks: {count} prompts, temperature 0.85, top_p 0.97", fontsize=10)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def table(result: dict[str, Any]) -> str:
    rows = ["| measure | | n |", "|---|---|---|"]
    for scale, share in result["match"].items():
        rows.append(f"| match with the text, guidance {scale:g} | {share:.1%} | {result['prompts']} |")
    rows.append(f"| step faithfulness | {result['step']:.1%} | {result['steps']} |")
    for name, key in (("goal reached", "goal"), ("caption exact", "caption"), ("edit exact", "edit")):
        rows.append(f"| {name} | {result[key]:.1%} | {result['others']} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="blocks")
    parser.add_argument("--out", type=Path, default=Path("tools/blocks/results"))
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--others", type=int, default=200, help="goals, captions and edits")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--weights", choices=("bfloat16", "int8", "int4"), help="default: as they are")
    args = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit('the plot needs matplotlib: pip install -e ".[train]"')
    start = time.time()
    examiner = Examiner(args.model, args.seed, args.weights)
    match = {}
    for scale in SCALES:
        match[scale] = examiner.match(scale, args.prompts)
        print(f"guidance {scale:g}: {match[scale]:.1%}  ({time.time() - start:.0f} s)", flush=True)
    step, goal, steps = examiner.instructions(args.others)
    result: dict[str, Any] = {"match": match, "prompts": args.prompts, "step": step, "goal": goal, "steps": steps}
    result |= {"caption": examiner.captions(args.others), "edit": examiner.edits(args.others), "others": args.others}
    print(table(result))
    args.out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"weights": args.weights or "float32", "seed": args.seed}
    facts |= {"seconds": round(time.time() - start), "torch": torch.__version__}
    facts["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
    (args.out / "evaluation.json").write_text(json.dumps({**result, **facts}, indent=2) + "\n")
    (args.out / "evaluation.md").write_text(
        f"# What `blocks` draws and says\n\n{__doc__.split('What is measured')[1].strip()}\n".replace(
            ", on prompts", "Measured on prompts", 1
        )
        + f"\n{table(result)}\n\n"
        f"Seed {args.seed}, torch {torch.__version__}, {facts['machine']}, {facts['seconds']} s.\n"
        "\n![match by guidance scale](evaluation.png)\n"
    )
    plot(match, args.out / "evaluation.png", args.prompts)


if __name__ == "__main__":
    main()
