"""What a report may say of a checkpoint and the run it is from, by the names of `metrics.facts`."""

from training import oracle
from training.options import TrainOptions
from training.schedule import phase, position

OF_A_MODEL = "image_encoder", "text_encoder", "embed_size", "image_res"
OF_A_RUN = ("loss", "margin", "tau", "posterior_floor", "nums_right_sims", "batch_size_train",
            "queue_size", "num_epochs", "warmup_epochs", "seed")
UNTRAINED = "not trained yet"


def run_facts(options: TrainOptions, state: dict | None) -> dict[str, object]:
    """Plain values.

    Args:
        options: as the checkpoint has them.
        state: a packed `Run`; None where another program trained the model.
    """
    if state is None:
        return {name: getattr(options, name) for name in OF_A_MODEL}
    facts = {name: getattr(options, name) for name in OF_A_RUN + OF_A_MODEL}
    if options.posterior != "published":
        facts["posterior"] = options.posterior
    if options.oracle != oracle.OFF:
        facts["oracle"] = oracle.text(options.oracle)
    progress = [state.get(name) for name in ("epoch", "step", "steps_per_epoch", "global_step")]
    if not all(type(number) is int and number >= 0 for number in progress):
        return facts  # a file that was not made by `checkpoint.pack`
    if progress[3] == 0:
        return {"phase": UNTRAINED, "epoch": 0, "step": 0} | facts
    epoch, _ = position(*progress[:3])
    return {"phase": phase(options, epoch - 1), "epoch": epoch, "step": progress[3]} | facts
