"""The training step beside the bare encoders, and on a GPU beside its matrix rate."""

import torch
from timing import Row, in_turns, row
from transformers import BertConfig, ViTConfig

from common.options import parse
from data import NO_PHOTO, Batch
from encoders import loading as encoders
from encoders.processors import load_tokenizer
from inputs.photos import normalize
from train import build_run, training_step
from training.run import Run

# The published encoders' configurations, with random weights: no hub is asked.
PUBLISHED_ENCODERS = {"vit-base": lambda size, words: ViTConfig(image_size=size),
                      "bert-base": lambda size, words: BertConfig()}
TOKENS = 16  # L, about what a caption of Flickr30K has

PUBLISHED = ["--dataset", "flickr", "--image_encoder", "vit-base", "--text_encoder", "bert-base"]
SMALL = ["--dataset", "shapes"]


def make_run(flags: list[str], device: str) -> Run:
    """A run past its warm-up, with a full bank and fitted statistics."""
    options, _ = parse("", [*flags, "--device", device, "--warmup_epochs", "0"])
    tokenizer = load_tokenizer("small-bert", options.vocab)
    run = build_run(options, tokenizer, matches=None, steps_per_epoch=1000, state=None)
    run.epoch = options.easy_epochs
    for gaussian, mean in (run.criterion.positive, 0.6), (run.criterion.negative, 0.4):
        gaussian.count.fill_(1000)
        gaussian.mean.fill_(mean)
        gaussian.m2.fill_(10.0)
    for start in range(0, options.queue_size, 512):
        batch = min(512, options.queue_size - start)
        keys = torch.nn.functional.normalize(
            torch.randn(2, batch, run.model.embed_size, device=device), dim=2)
        run.bank.enqueue(*keys, torch.randint(29_000, (batch,), device=device))
    return run


def random_batch(run: Run) -> Batch:
    """Fresh random photos and captions on the run's device."""
    options, batch = run.options, run.options.batch_size_train
    size = batch, 3, options.image_res, options.image_res
    words = run.model.text_encoder.config.vocab_size
    return Batch(
        torch.randint(256, size, dtype=torch.uint8, device=run.device),
        torch.randint(5, words, (batch, TOKENS), device=run.device),
        torch.ones(batch, TOKENS, dtype=torch.int64, device=run.device),
        torch.randint(29_000, (batch,), device=run.device),
        torch.randint(145_000, (batch,), device=run.device),
        torch.full((batch,), NO_PHOTO, device=run.device))


def step(run: Run, batch: Batch) -> None:
    training_step(run, batch)
    run.logs.clear()
    run.global_step += 1


def bare_encoders(run: Run, batch: Batch) -> None:
    """The work that no step can do without: both towers there and back, the momentum ones there."""
    pixels = normalize(batch.pixels, *run.pixel_statistics)
    text = batch.input_ids, batch.attention_mask
    similarity = (run.model.encode_image(pixels) * run.model.encode_text(*text)).sum()
    with torch.no_grad():
        run.momentum_model.encode_image(pixels)
        run.momentum_model.encode_text(*text)
    similarity.backward()
    run.model.zero_grad()


def necessary_flops(run: Run) -> float:
    """Of the matrix products of `bare_encoders`: forward once, backward twice that, momentum once.

    A layer does 24 W^2 a token for its weights and 4 L W for its attention (2 a multiply-add).
    """
    vision, text = run.model.image_encoder.config, run.model.text_encoder.config
    patches = (vision.image_size // vision.patch_size) ** 2
    flops = 2 * 3 * vision.patch_size**2 * vision.hidden_size * patches
    for config, length in (vision, patches + 1), (text, TOKENS):
        width = config.hidden_size
        weights = 8 * width**2 + 4 * width * config.intermediate_size
        flops += config.num_hidden_layers * length * (weights + 4 * length * width)
    return 4.0 * flops * run.options.batch_size_train


def matrix_rate(repeats: int, size: int = 8192) -> float:
    """FLOPs a second of a bfloat16 product on the GPU, the best of several."""
    left, right = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    seconds, _ = in_turns(repeats, lambda: left @ right, lambda: None, "cuda")
    return 2 * size**3 / min(seconds)


def small(short: bool) -> list[str]:
    return [*SMALL, *(["--batch_size_train", "4", "--queue_size", "8"] if short else [])]


def training_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """A step beside the bare encoders; on a GPU the published setting, on a CPU `shapes`."""
    if device == "cuda":
        rate = matrix_rate(repeats)
        encoders.BUILT_IN.update(PUBLISHED_ENCODERS)
        return [row for batch in (32, 128, 512) for row in gpu_rows(batch, rate, repeats)]
    run = make_run(small(short), device)
    return [row("training", f"a step on shapes, B {run.options.batch_size_train}",
                "the bare encoders", beside_encoders(run, repeats))]


def gpu_rows(batch: int, rate: float, repeats: int) -> list[Row]:
    """The published setting at one batch size; `rate` is that of `matrix_rate`."""
    more = ["--grad_checkpointing"] if batch == 512 else []
    flags = [*PUBLISHED, "--batch_size_train", str(batch), *more]
    run = make_run(flags, "cuda")
    what = " ".join([f"a step of ViT-B/16-384 and BERT base, B {batch}", *more])
    times = beside_encoders(run, repeats)
    ideal = [necessary_flops(run) / rate] * repeats
    rows = [row("training", what, "the bare encoders", times),
            row("training", what, f"its FLOPs at {rate / 1e12:.0f} TFLOP/s", (times[0], ideal))]
    if not more:  # which would take minutes
        rows.append(row("training", f"memory in steps 181 to 200, B {batch}", "in steps 1 to 20",
                        memory_of_steps(run), unit="MiB"))
    if batch == 32:
        plain = make_run([*flags, "--precision", "fp32"], "cuda")
        rows.append(row("training", what, "the float32 step takes (times ours)",
                        of_both(run, plain, repeats), inverse=True))
    return rows


def compile_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """A step with `--compile` beside the same without."""
    settings = [small(short)]
    if device == "cuda":
        encoders.BUILT_IN.update(PUBLISHED_ENCODERS)
        settings = [[*PUBLISHED, "--batch_size_train", str(batch)] for batch in (32, 128)]
    rows = []
    for flags in settings:
        compiled, plain = make_run([*flags, "--compile"], device), make_run(flags, device)
        rows.append(row("compile", f"a step with --compile, {' '.join(flags)}",
                        "without it takes (times ours)", of_both(compiled, plain, repeats),
                        inverse=True))
    return rows


def of_both(run: Run, other: Run, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of a step of each."""
    return in_turns(repeats, lambda: step(run, random_batch(run)),
                    lambda: step(other, random_batch(other)), run.device.type)


def beside_encoders(run: Run, repeats: int) -> tuple[list[float], list[float]]:
    return in_turns(repeats, step, bare_encoders, run.device.type,
                    lambda: (run, random_batch(run)))


def memory_of_steps(run: Run) -> tuple[list[float], list[float]]:
    """Highest memory allocated, MiB, in steps 181 to 200 and 1 to 20."""
    peaks = []
    for number in range(1, 201):
        if number in (1, 181):
            torch.cuda.reset_peak_memory_stats()
        step(run, random_batch(run))
        if number in (20, 200):
            peaks.append(torch.cuda.max_memory_allocated() / 2**20)
    return peaks[1:], peaks[:1]
