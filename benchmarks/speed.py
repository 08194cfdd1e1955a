"""Compare the speed of the parts of this program with what limits them on this machine.

    python benchmarks/speed.py                     all of it, some minutes on two cores
    python benchmarks/speed.py --sections loss evaluation --threads 1
    python benchmarks/speed.py --save              keep the table in benchmarks/results/

Each row is a ratio: the time of this program's code over that of its limit, or the time of the
plain way over that of this program. Both are measured in turns in one process, after a warm-up, on
fresh random inputs, and synchronised where there is a GPU. Absolute times change with whatever else
a machine does; ratios change far less.
"""

import argparse
import datetime
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import numpy as np
import timing
import torch
import torch.nn.functional as F
import torchvision
import transformers
from photo_input import input_rows
from timing import Row, make_row, time_in_turns
from training_step import compile_rows, sampling_rows, training_rows

from common.errors import exit_on_input_error
from encoders.processors import load_tokenizer
from evaluation import encode_captions
from fne_loss import FNELoss, cosine
from inputs.captions import Captions, pad_captions
from memory_bank import MemoryBank
from metrics.retrieval import metrics_and_five_fold, retrieval_metrics
from model import build_model
from training.options import parse

RESULTS = Path(__file__).parent / "results"
SHORT_WORK_TURNS = 4  # short work, which is disturbed most, is measured so many times as often


def unit_rows(count: int, dim: int, device: str, near: torch.Tensor | None = None) -> torch.Tensor:
    """Return random unit rows (count, dim) around one direction, or around the rows of `near`."""
    rows = torch.randn(count, dim, device=device)
    rows = rows + 0.6 if near is None else near + 0.03 * rows
    return F.normalize(rows, dim=1)


# --------------------------------------------------------------------------------------------- loss


def filled_bank(size: int, dim: int, device: str) -> MemoryBank:
    """Return a full memory bank of random pairs: M is `size`, D is `dim`."""
    bank = MemoryBank(size, dim).to(device)
    for start in range(0, size, 8192):
        images = unit_rows(min(8192, size - start), dim, device)
        bank.enqueue(images, unit_rows(len(images), dim, device, images),
                     *random_pairs(len(images), device))
    return bank


def random_pairs(count: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of random photos (count,) and captions (count,), five of each photo."""
    texts = torch.randint(145_000, (count,), device=device)
    return texts // 5, texts


def fitted_loss(dim: int, device: str, **settings) -> FNELoss:
    """Return an FNE loss whose statistics are fitted to random pairs.

    Args:
        dim: D of the embeddings.
        settings: of `FNELoss`.
    """
    criterion = FNELoss(**settings).to(device)
    while criterion.positive.count <= criterion.min_count:
        images = unit_rows(64, dim, device)
        criterion.update_statistics(images, unit_rows(64, dim, device, images),
                                    torch.arange(64, device=device))
    return criterion


# B, M, D, and the share of candidates above the cut-down.
LOSS_SIZES = [(32, 8224, 256, 0.1), (32, 8224, 768, 0.1), (32, 1_048_576, 256, 0.1),
              (256, 65_536, 256, 0.1), (256, 65_536, 256, 0.0), (256, 65_536, 256, 1.0),
              (256, 65_536, 768, 0.1), (1024, 8224, 256, 0.1), (1024, 262_144, 768, 0.1)]
EVIDENCE_SIZES = [(32, 8224, 256, 0.1), (32, 8224, 768, 0.1), (256, 65_536, 256, 0.1),
                  (256, 65_536, 768, 0.1)]


def loss_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """Return the FNE loss, forward and backward, beside the similarities alone that it ranks by.

    Args:
        short: whether to take tiny sizes.
        repeats: turns of each measurement.
        device: "cpu" or "cuda".
    """
    sizes = {"published": LOSS_SIZES, "evidence": EVIDENCE_SIZES}
    if short:
        sizes = {posterior: [(4, 64, 16, 0.5)] for posterior in sizes}
    cases = [(posterior, size) for posterior, listed in sizes.items() for size in listed]
    rows = []
    for posterior, (batch, size, dim, share_above) in cases:
        bank = filled_bank(size, dim, device)
        criterion = fitted_loss(dim, device, posterior=posterior)

        def make_arguments(batch=batch, dim=dim):
            base = unit_rows(batch, dim, device)
            embeds = [unit_rows(batch, dim, device, base) for _ in range(4)]
            return (embeds[0].requires_grad_(), embeds[1].requires_grad_(), *embeds[2:],
                    *random_pairs(batch, device))

        sample = cosine(make_arguments()[2], bank.text_keys[:4096]).flatten()
        bound = {0.0: 1.0, 1.0: -1.0}.get(share_above, sample.quantile(1 - share_above))
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

        turns = repeats
        if size >= 1e5:
            turns = min(repeats, 3)
        elif size < 1e4 and not short:
            turns = SHORT_WORK_TURNS * repeats
        times = time_in_turns(turns, step, products, device, make_arguments)
        name = "FNE loss" if posterior == "published" else "FNE loss by evidence"
        work = (f"{name} and gradient, B {batch:,}, M {size:,}, D {dim}, {share_above:.0%} left by "
                "the cut-down")
        rows.append(make_row("loss", work, "its similarity products", times))
    return rows


# --------------------------------------------------------------------------------------- evaluation


def evaluation_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """Return ranks and recalls of splits as large as Flickr30K's and COCO's beside one product.

    The matrix product of all photos and captions is what they cannot do without.

    Args:
        short: whether to take tiny sizes.
        repeats: turns of each measurement.
        device: "cpu" or "cuda".
    """
    rows, dim = [], 16 if short else 768
    for images in (10, 50) if short else (1000, 5000):
        image_of_text = torch.arange(images, device=device).repeat_interleave(5)

        def make_arguments(images=images, image_of_text=image_of_text):
            image_embeds = unit_rows(images, dim, device)
            noise = torch.randn(5 * images, dim, device=device)
            text_embeds = F.normalize(image_embeds[image_of_text] + 0.3 * noise, dim=1)
            return image_embeds, text_embeds, image_of_text

        def product(image_embeds, text_embeds, _):
            image_embeds @ text_embeds.T

        size = f"{images:,} x {5 * images:,}, D {dim}"
        for name, work in ((f"all metrics of {size}", retrieval_metrics),
                           (f"with five folds, {size}", metrics_and_five_fold)):
            turns = repeats if short or images >= 5000 else SHORT_WORK_TURNS * repeats
            times = time_in_turns(turns, work, product, device, make_arguments)
            rows.append(make_row("evaluation", name, "one matrix product", times))
    return rows


# ----------------------------------------------------------------------------------------- captions


def make_captions(count: int, words: list[str]) -> list[str]:
    """Return random captions of 5 to 24 words, 12 on average, with a capital and a full stop."""
    rng = np.random.default_rng()
    lengths = 5 + rng.binomial(19, 0.37, size=count)
    return [" ".join(rng.choice(words, length)).capitalize() + " ." for length in lengths]


def caption_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """Return the cleaning and tokenising of as many captions as Flickr30K has, and their embedding.

    Args:
        short: whether to take tiny sizes.
        repeats: turns of each measurement.
        device: "cpu" or "cuda".
    """
    tokenizer = load_tokenizer("small-bert", "vocab/flickr30k.txt")
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    captions = make_captions(200 if short else 145_000, words)
    bare_tokenizer = tokenizer.backend_tokenizer
    reading = time_in_turns(min(repeats, 3), lambda: Captions(captions, tokenizer, 30, 30),
                            lambda: bare_tokenizer.encode_batch_fast(captions))
    embedded = Captions(captions[: 40 if short else 5000], tokenizer, 30, 30)
    options, _ = parse("", ["--dataset", "shapes", "--image_encoder", "small-vit",
                            "--text_encoder", "tiny-bert" if short else "small-bert"])
    model = build_model(options, tokenizer).to(device).eval()

    @torch.no_grad()
    def in_order():
        for start in range(0, len(embedded), 256):
            stop = min(start + 256, len(embedded))
            rows = [embedded[index] for index in range(start, stop)]
            model.encode_text(*(tensor.to(device) for tensor in pad_captions(rows, 0, None)))

    embedding = time_in_turns(repeats, lambda: encode_captions(model, embedded), in_order, device)
    return [make_row("captions", f"{len(captions):,} captions cleaned, tokenised and packed",
                     "the tokenizer alone", reading),
            make_row("captions", f"{len(embedded):,} captions embedded, sorted by length",
                     "in their own order they take (times ours)", embedding, inverse=True)]


# --------------------------------------------------------------------------------------- the script

SECTIONS = {"loss": loss_rows, "training": training_rows, "input": input_rows,
            "captions": caption_rows, "evaluation": evaluation_rows, "sampling": sampling_rows,
            "compile": compile_rows}
# "compile" takes minutes, and needs a C compiler.
DEFAULT_SECTIONS = [name for name in SECTIONS if name != "compile"]


def table(rows: list[Row]) -> str:
    """Return rows as a Markdown table: median ratio, its range, and this program's median time."""
    lines = ["| part | beside | ratio | least to most | ours |", "|---|---|---|---|---|"]
    for row in rows:
        value = f"{1000 * row.value:,.1f} ms" if row.unit == "s" else f"{row.value:,.0f} {row.unit}"
        lines.append(f"| {row.work} | {row.reference} | {statistics.median(row.ratios):.2f} | "
                     f"{min(row.ratios):.2f} to {max(row.ratios):.2f} | {value} |")
    return "\n".join(lines)


def describe_machine(device: str) -> str:
    """Return the processor, its threads, and the versions of the libraries, in one line."""
    cores = []  # the name of the processor, once for each core
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        cores = [line.split(":")[1].strip() for line in cpu_info.read_text().splitlines()
                 if line.startswith("model name")]
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = cores[0] if cores else "CPU"
    return (f"{name}, {len(cores) or '?'} cores, {torch.get_num_threads()} threads; Python "
            f"{platform.python_version()}, torch {torch.__version__}, torchvision "
            f"{torchvision.__version__}, transformers {transformers.__version__}")


def save_table(kind: str, command: str, text: str) -> None:
    """Write what `command` has measured to a dated file in `RESULTS`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today()}_{kind}.md"
    path.write_text(f"`python benchmarks/{command}`: {text}\n")


def main(argv: list[str] | None = None) -> list[Row]:
    """Run the command with the arguments `argv`, or with those of the process; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=DEFAULT_SECTIONS,
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
    text = f"{datetime.date.today()}, {describe_machine(options.device)}\n\n{table(rows)}"
    print(text)
    if options.save:
        command = " ".join(["speed.py", *(sys.argv[1:] if argv is None else argv)])
        save_table(f"{options.device}_speed", command, text)
    return rows


if __name__ == "__main__":
    with exit_on_input_error():
        main()
