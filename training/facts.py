"""What a report may say of a checkpoint and the run it is from, by the names of `metrics.facts`."""

from training.objectives import OBJECTIVES, objective_class
from training.options import TrainOptions
from training.schedule import position
from training.true_matches import ORACLE_TEXT

OF_A_MODEL = "image_encoder", "text_encoder", "embed_size", "image_res"
OF_A_RUN = ("loss", "margin", "tau", "posterior_floor", "nums_right_sims", "batch_size_train",
            "queue_size", "num_epochs", "warmup_epochs", "seed")
UNTRAINED = "not trained yet"


def run_facts(options: TrainOptions, state: dict | None) -> dict[str, object]:
    """Collect plain values that describe a model and its run, by name.

    Args:
        options: as the checkpoint has them.
        state: a packed `Run`; None where another program trained the model.
    """
    if state is None:
        return {name: getattr(options, name) for name in OF_A_MODEL}
    facts = {name: getattr(options, name) for name in OF_A_RUN + OF_A_MODEL}
    if options.margin == "auto":  # stopped before its first validation, which tells the number
        del facts["margin"]
    if options.posterior != "published":
        facts["posterior"] = options.posterior
    if options.oracle != "off":
        facts["oracle"] = ORACLE_TEXT[options.oracle]
    progress = [state.get(name) for name in ("epoch", "step", "steps_per_epoch", "global_step")]
    if not all(type(number) is int and number >= 0 for number in progress):
        return facts  # a file that was not made by `checkpoint.pack`
    epoch, step, steps_per_epoch, global_step = progress
    if global_step == 0:
        return {"phase": UNTRAINED, "epoch": 0, "step": 0} | facts
    epoch, _ = position(epoch, step, steps_per_epoch)
    phase = options.loss  # of an objective that this program may not have
    if options.loss in OBJECTIVES:
        phase = objective_class(options.loss).phase(options, epoch - 1)
    return {"phase": phase, "epoch": epoch, "step": global_step} | facts
