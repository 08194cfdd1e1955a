"""Compare a training step with the bare encoders, and on a GPU with its rate of products."""

from unittest import mock

import torch
from timing import Row, make_row, time_in_turns
from transformers import BertConfig, ViTConfig

import negative_sampling
from checkpoint import model_for_training
from data import NO_PHOTO, Batch
from encoders import loading as encoders
from encoders.processors import load_tokenizer
from inputs.photos import normalize
from train import training_step
from training.options import parse
from training.run import Run, build_run

# Configurations of the published encoders. Their weights are random, so the Hub is not needed.
PUBLISHED_ENCODERS = {"vit-base": lambda size, words: ViTConfig(image_size=size),
                      "bert-base": lambda size, words: BertConfig()}
TOKENS = 16  # L, about what a caption of Flickr30K has

PUBLISHED = ["--dataset", "flickr", "--image_encoder", "vit-base", "--text_encoder", "bert-base"]
SMALL = ["--dataset", "shapes"]


def make_run(flags: list[str], device: str) -> Run:
    """Return a run after its warm-up, with a full memory bank and fitted statistics.

    Args:
        flags: of train.py.
        device: "cpu" or "cuda".
    """
    options, _ = parse("", [*flags, "--device", device, "--warmup_epochs", "0"])
    tokenizer = load_tokenizer("small-bert", options.vocab)
    model = model_for_training(options, None, None, tokenizer)
    run = build_run(options, model, tokenizer, steps_per_epoch=1000)
    run.epoch = options.easy_epochs
    criterion = run.objective.criterion
    for gaussian, mean in (criterion.positive, 0.6), (criterion.negative, 0.4):
        gaussian.count.fill_(1000)
        gaussian.mean.fill_(mean)
        gaussian.m2.fill_(10.0)
    for start in range(0, options.queue_size, 512):
        batch = min(512, options.queue_size - start)
        keys = torch.nn.functional.normalize(
            torch.randn(2, batch, run.model.embed_size, device=device), dim=2)
        run.objective.bank.enqueue(*keys, torch.randint(29_000, (batch,), device=device))
    return run


def random_batch(run: Run) -> Batch:
    """Return a batch of random photos and captions on the run's device."""
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
    """Do one training step, which changes `run` in place."""
    training_step(run, batch)
    run.logs.clear()
    run.global_step += 1


def bare_encoders(run: Run, batch: Batch) -> None:
    """Do the work that no step can do without, and nothing else.

    That is the forward and the backward pass of both encoders, and the forward pass of both
    momentum encoders.
    """
    pixels = normalize(batch.pixels, *run.pixel_statistics)
    text = batch.input_ids, batch.attention_mask
    similarity = (run.model.encode_image(pixels) * run.model.encode_text(*text)).sum()
    with torch.no_grad():
        run.objective.momentum_model.encode_image(pixels)
        run.objective.momentum_model.encode_text(*text)
    similarity.backward()
    run.model.zero_grad()


def necessary_flops(run: Run) -> float:
    """Return the floating-point operations of the matrix products of `bare_encoders`.

    The backward pass takes twice those of the forward pass, the momentum encoders take them once. A
    layer of width W does 24 W^2 operations a token for its weights and 4 L W for its attention,
    where a multiplication with its addition counts as two.
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
    """Return the operations a second of a bfloat16 matrix product on the GPU, the best of several.

    Args:
        repeats: products that are measured.
        size: rows and columns of both matrices.
    """
    left, right = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    seconds, _ = time_in_turns(repeats, lambda: left @ right, lambda: None, "cuda")
    return 2 * size**3 / min(seconds)


def small_flags(short: bool) -> list[str]:
    """Return the flags of a run on `shapes`, of tiny size if `short`."""
    return [*SMALL, *(["--batch_size_train", "4", "--queue_size", "8"] if short else [])]


def training_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """Return a step beside the bare encoders: of the published setting on a GPU, else of `shapes`.

    Args:
        short: whether to take tiny sizes on a CPU.
        repeats: turns of each measurement.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        rate = matrix_rate(repeats)
        encoders.BUILT_IN.update(PUBLISHED_ENCODERS)
        return [row for batch in (32, 128, 512) for row in gpu_rows(batch, rate, repeats)]
    run = make_run(small_flags(short), device)
    return [make_row("training", f"a step on shapes, B {run.options.batch_size_train}",
                     "the bare encoders", time_beside_encoders(run, repeats))]


def gpu_rows(batch: int, rate: float, repeats: int) -> list[Row]:
    """Return the rows of the published setting at one batch size, on a GPU.

    Args:
        batch: B, the pairs of a step.
        rate: operations a second, as `matrix_rate` measures them.
        repeats: turns of each measurement.
    """
    checkpointing = ["--grad_checkpointing"] if batch == 512 else []
    flags = [*PUBLISHED, "--batch_size_train", str(batch), *checkpointing]
    run = make_run(flags, "cuda")
    work = " ".join([f"a step of ViT-B/16-384 and BERT base, B {batch}", *checkpointing])
    times = time_beside_encoders(run, repeats)
    ideal_times = [necessary_flops(run) / rate] * repeats
    rows = [make_row("training", work, "the bare encoders", times),
            make_row("training", work, f"its FLOPs at {rate / 1e12:.0f} TFLOP/s",
                     (times[0], ideal_times))]
    if not checkpointing:  # 200 steps of so large a batch would take minutes
        rows.append(make_row("training", f"memory in steps 181 to 200, B {batch}",
                             "in steps 1 to 20", memory_of_steps(run), unit="MiB"))
    if batch == 32:
        plain = make_run([*flags, "--precision", "fp32"], "cuda")
        rows.append(make_row("training", work, "the float32 step takes (times ours)",
                             time_two_runs(run, plain, repeats), inverse=True))
    return rows


def compile_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """Return a step, and its draw and hinge alone, with `--compile` beside those without it.

    Args:
        short: whether to take tiny sizes on a CPU.
        repeats: turns of each measurement.
        device: "cpu" or "cuda".
    """
    settings = [small_flags(short)]
    if device == "cuda":
        encoders.BUILT_IN.update(PUBLISHED_ENCODERS)
        settings = [[*PUBLISHED, "--batch_size_train", str(batch)] for batch in (32, 128)]
    rows = []
    for flags in settings:
        compiled, plain = make_run([*flags, "--compile"], device), make_run(flags, device)
        rows.append(make_row("compile", f"a step with --compile, {' '.join(flags)}",
                             "without it takes (times ours)",
                             time_two_runs(compiled, plain, repeats), inverse=True))
        rows.append(make_row("compile", f"its draw, hinge and gradient, {' '.join(flags)}",
                             "without it takes (times ours)",
                             time_two_losses(compiled, plain, repeats), inverse=True))
    return rows


# Of the results on Flickr8k: a frozen MobileNetV2 has seen all photos, and has features of this
# width; a text encoder is trained. Any small image encoder stands in for it, since none computes.
FLICKR8K = ["--dataset", "flickr8k", "--data_path", ".", "--image_encoder", "small-convnext",
            "--image_res", "32", "--freeze", "image", "--embed_size", "256"]


def sampling_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """Return whole steps on a CPU whose negatives are drawn by exact weights, beside rejection.

    Args:
        short: whether to take tiny sizes.
        repeats: turns of each measurement.
        device: "cpu"; a GPU draws exactly in any case, and gives no row.
    """
    if device == "cuda":
        return []
    rows = []
    for name, flags in ("flickr8k", FLICKR8K), ("shapes", SMALL):
        tiny = ["--batch_size_train", "4", "--queue_size", "8"] if short else []
        run = make_run([*flags, *tiny], device)
        if name == "flickr8k":
            width = run.model.image_projection.in_features
            run.image_features = torch.randn(29_000, width)  # (N_i, W)
        options = run.options
        work = (f"a step on {name}, B {options.batch_size_train}, M {options.queue_size:,}, "
                "negatives drawn exactly")
        times = time_in_turns(repeats, step_drawn_exactly, step_drawn_by_rejection, device,
                              lambda run=run: (run, random_batch(run)))
        rows.append(make_row("sampling", work, "drawn by rejection", times))
    return rows


def step_drawn_exactly(run: Run, batch: Batch) -> None:
    """Make a step whose negatives are drawn by the weights of all candidates."""
    with mock.patch.object(negative_sampling, "EXACT_UP_TO", 2**62):
        step(run, batch)


def step_drawn_by_rejection(run: Run, batch: Batch) -> None:
    """Make a step whose negatives are drawn by rejection sampling, whatever the size."""
    with mock.patch.object(negative_sampling, "EXACT_UP_TO", 0):
        step(run, batch)


def time_two_runs(run: Run, other: Run, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of a step of each of two runs, `repeats` times in turns."""
    return time_in_turns(repeats, lambda: step(run, random_batch(run)),
                         lambda: step(other, random_batch(other)), run.device.type)


def time_two_losses(run: Run, other: Run, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of draw, hinge and gradient of each of two runs of FNE, in turns."""
    size = 4, run.options.batch_size_train, run.model.embed_size
    embeds = torch.nn.functional.normalize(torch.randn(size, device=run.device), dim=2)
    batch = random_batch(run)

    def loss_and_gradient(run: Run) -> None:
        anchors = embeds[:2].clone().requires_grad_()
        loss, *_ = run.objective.draw_and_hinge(*anchors, *embeds[2:], batch.image_ids,
                                                batch.text_ids, 0, (None, None))
        loss.backward()

    return time_in_turns(repeats, lambda: loss_and_gradient(run),
                         lambda: loss_and_gradient(other), run.device.type)


def time_beside_encoders(run: Run, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of a step and of `bare_encoders`, `repeats` times in turns."""
    return time_in_turns(repeats, step, bare_encoders, run.device.type,
                         lambda: (run, random_batch(run)))


def memory_of_steps(run: Run) -> tuple[list[float], list[float]]:
    """Return the highest memory allocated on the GPU, in MiB, in steps 181 to 200 and 1 to 20."""
    peaks = []
    for number in range(1, 201):
        if number in (1, 181):
            torch.cuda.reset_peak_memory_stats()
        step(run, random_batch(run))
        if number in (20, 200):
            peaks.append(torch.cuda.max_memory_allocated() / 2**20)
    return peaks[1:], peaks[:1]
