"""How fast the parts of this program are beside what limits them on this machine.

    python benchmarks/speed.py                     all of it, some minutes on two cores
    python benchmarks/speed.py --sections loss evaluation --threads 1
    python benchmarks/speed.py --save              keep the table in benchmarks/results/

Each row is a ratio: the time of our code over that of its limit (or of the plain way over ours),
measured in turns in one process, after a warm-up, on fresh random inputs and synchronised where
there is a GPU. Absolute times drift with whatever else a machine does; ratios far less.
"""

import argparse
import datetime
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import timing
import torch
import torch.nn.functional as F
import torchvision
import transformers
from photo_input import input_rows
from timing import Row, in_turns, row
from training_step import compile_rows, training_rows

from encoders.processors import load_tokenizer
from evaluation import encode_captions
from fne_loss import FNELoss, cosine
from inputs.captions import Captions, pad_captions
from memory_bank import MemoryBank
from metrics.retrieval import metrics_and_five_fold, retrieval_metrics
from model import build_model
from training.options import parse

RESULTS = Path(__file__).parent / "results"
OFTEN = 4  # times as often is short work measured: it is disturbed most


def unit_rows(count: int, dim: int, device: str, near: torch.Tensor | None = None) -> torch.Tensor:
    """Random unit rows (count, dim) around one direction, or around the rows of `near`."""
    rows = torch.randn(count, dim, device=device)
    rows = rows + 0.6 if near is None else near + 0.03 * rows
    return F.normalize(rows, dim=1)


# --------------------------------------------------------------------------------------------- loss


def filled_bank(size: int, dim: int, device: str) -> MemoryBank:
    bank = MemoryBank(size, dim).to(device)
    for start in range(0, size, 8192):
        images = unit_rows(min(8192, size - start), dim, device)
        bank.enqueue(images, unit_rows(len(images), dim, device, images),
                     *random_pairs(len(images), device))
    return bank


def random_pairs(count: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos (count,) and captions (count,), five of each photo."""
    texts = torch.randint(145_000, (count,), device=device)
    return texts // 5, texts


def fitted_loss(dim: int, device: str, **settings) -> FNELoss:
    criterion = FNELoss(**settings).to(device)
    while criterion.positive.count <= criterion.min_count:
        images = unit_rows(64, dim, device)
        criterion.update_statistics(images, unit_rows(64, dim, device, images),
                                    torch.arange(64, device=device))
    return criterion


# B, M, D, and the share of candidates that the cut-down leaves.
LOSSES = [(32, 8224, 256, 0.1), (32, 8224, 768, 0.1), (32, 1_048_576, 256, 0.1),
          (256, 65_536, 256, 0.1), (256, 65_536, 256, 0.0), (256, 65_536, 256, 1.0),
          (256, 65_536, 768, 0.1), (1024, 8224, 256, 0.1), (1024, 262_144, 768, 0.1)]
BY_EVIDENCE = [(32, 8224, 256, 0.1), (32, 8224, 768, 0.1), (256, 65_536, 256, 0.1),
               (256, 65_536, 768, 0.1)]


def loss_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """The FNE loss, forward and backward, beside the similarities alone that it ranks by."""
    rows = []
    short_ones = [("published", (4, 64, 16, 0.5)), ("evidence", (4, 64, 16, 0.5))]
    whole = [("published", of) for of in LOSSES] + [("evidence", of) for of in BY_EVIDENCE]
    for posterior, (batch, size, dim, left) in short_ones if short else whole:
        bank, criterion = (filled_bank(size, dim, device),
                           fitted_loss(dim, device, posterior=posterior))

        def fresh(batch=batch, dim=dim):
            base = unit_rows(batch, dim, device)
            embeds = [unit_rows(batch, dim, device, base) for _ in range(4)]
            return (embeds[0].requires_grad_(), embeds[1].requires_grad_(), *embeds[2:],
                    *random_pairs(batch, device))

        some = cosine(fresh()[2], bank.text_keys[:4096]).flatten()
        bound = {0.0: 1.0, 1.0: -1.0}.get(left, some.quantile(1 - left))
        criterion.margin = float(criterion.positive.mean - bound)

        def step(images, texts, image_keys, text_keys, ids, text_ids, bank=bank,
                 criterion=criterion):
            criterion(images, texts, image_keys, text_keys, ids, bank,
                      text_ids=text_ids).backward()

        @torch.no_grad()
        def products(images, texts, image_keys, text_keys, ids, text_ids, bank=bank):
            for anchors, keys, stored in ((images, text_keys, bank.text_keys),
                                          (texts, image_keys, bank.image_keys)):
                cosine(anchors, keys)
                cosine(anchors, stored)

        turns = repeats if short or size >= 1e4 else OFTEN * repeats
        turns = turns if size < 1e5 else min(repeats, 3)
        times = in_turns(turns, step, products, device, fresh)
        name = "FNE loss" if posterior == "published" else "FNE loss by evidence"
        rows.append(row("loss", f"{name} and gradient, B {batch:,}, M {size:,}, D {dim}, "
                        f"{left:.0%} left by the cut-down", "its similarity products", times))
    return rows


# --------------------------------------------------------------------------------------- evaluation


def evaluation_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """Ranks and recalls of Flickr30K's and COCO's test splits beside the one matrix product that
    they need."""
    rows, dim = [], 16 if short else 768
    for images in (10, 50) if short else (1000, 5000):
        image_of_text = torch.arange(images, device=device).repeat_interleave(5)

        def fresh(images=images, image_of_text=image_of_text):
            rows = unit_rows(images, dim, device)
            noise = torch.randn(5 * images, dim, device=device)
            return rows, F.normalize(rows[image_of_text] + 0.3 * noise, dim=1), image_of_text

        def product(rows, texts, _):
            rows @ texts.T

        size = f"{images:,} x {5 * images:,}, D {dim}"
        for what, work in ((f"all metrics of {size}", retrieval_metrics),
                           (f"with five folds, {size}", metrics_and_five_fold)):
            turns = repeats if short or images >= 5000 else OFTEN * repeats
            times = in_turns(turns, work, product, device, fresh)
            rows.append(row("evaluation", what, "one matrix product", times))
    return rows


# ----------------------------------------------------------------------------------------- captions


def make_captions(count: int, words: list[str]) -> list[str]:
    """Captions of 5 to 24 words, 12 on average, with a capital and a full stop."""
    rng = np.random.default_rng()
    lengths = 5 + rng.binomial(19, 0.37, size=count)
    return [" ".join(rng.choice(words, length)).capitalize() + " ." for length in lengths]


def caption_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """Flickr30K's captions, cleaned and tokenised once a run; and embedded, as a test does."""
    tokenizer = load_tokenizer("small-bert", "vocab/flickr30k.txt")
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    captions = make_captions(200 if short else 145_000, words)
    core = tokenizer.backend_tokenizer
    read = in_turns(min(repeats, 3), lambda: Captions(captions, tokenizer, 30, 30),
                    lambda: core.encode_batch_fast(captions))
    some = Captions(captions[: 40 if short else 5000], tokenizer, 30, 30)
    options, _ = parse("", ["--dataset", "shapes", "--image_encoder", "small-vit",
                            "--text_encoder", "tiny-bert" if short else "small-bert"])
    model = build_model(options, tokenizer).to(device).eval()

    @torch.no_grad()
    def in_order():
        for start in range(0, len(some), 256):
            rows = [some[index] for index in range(start, min(start + 256, len(some)))]
            model.encode_text(*(part.to(device) for part in pad_captions(rows, 0, None)))

    embed = in_turns(repeats, lambda: encode_captions(model, some), in_order, device)
    return [row("captions", f"{len(captions):,} captions cleaned, tokenised and packed",
                "the tokenizer alone", read),
            row("captions", f"{len(some):,} captions embedded, sorted by length",
                "in their own order they take (times ours)", embed, inverse=True)]


# --------------------------------------------------------------------------------------- the script

SECTIONS = {"loss": loss_rows, "training": training_rows, "input": input_rows,
            "captions": caption_rows, "evaluation": evaluation_rows, "compile": compile_rows}
USUAL = [name for name in SECTIONS if name != "compile"]  # which takes minutes, and a C compiler


def table(rows: list[Row]) -> str:
    """A Markdown table: median ratio, its spread, and our median time."""
    lines = ["| part | beside | ratio | least to most | ours |", "|---|---|---|---|---|"]
    for r in rows:
        ours = f"{1000 * r.ours:,.1f} ms" if r.unit == "s" else f"{r.ours:,.0f} {r.unit}"
        lines.append(f"| {r.what} | {r.beside} | {statistics.median(r.ratios):.2f} | "
                     f"{min(r.ratios):.2f} to {max(r.ratios):.2f} | {ours} |")
    return "\n".join(lines)


def machine(device: str) -> str:
    """What the figures were measured on."""
    cores = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []
    name = torch.cuda.get_device_name() if device == "cuda" else cores[0] if cores else "CPU"
    return (f"{name}, {len(cores) or '?'} cores, {torch.get_num_threads()} threads; Python "
            f"{platform.python_version()}, torch {torch.__version__}, torchvision "
            f"{torchvision.__version__}, transformers {transformers.__version__}")


def keep(kind: str, command: str, text: str) -> None:
    """Write what `command` measured to a dated file of `RESULTS`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today()}_{kind}.md"
    path.write_text(f"`python benchmarks/{command}`: {text}\n")


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=USUAL,
                        help="what to measure (all but compile)")
    parser.add_argument("--repeats", type=int, default=7, help="times that each is measured")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on a CPU")
    parser.add_argument("--cpu_time", action="store_true",
                        help="take the processor's seconds, which other work disturbs less")
    parser.add_argument("--device", choices=["cpu", "cuda"],
                        default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--short", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results/")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    timing.now = time.process_time if options.cpu_time else time.perf_counter
    rows = []
    for name in options.sections:
        rows += SECTIONS[name](options.short, options.repeats, options.device)
    text = f"{datetime.date.today()}, {machine(options.device)}\n\n{table(rows)}"
    print(text)
    if options.save:
        command = " ".join(["speed.py", *(sys.argv[1:] if argv is None else argv)])
        keep(f"{options.device}_speed", command, text)
    return rows


if __name__ == "__main__":
    main()
