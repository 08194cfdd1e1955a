"""The runs of `experiments.teacher`: regimes, losses, uses of P(match), teachers and seeds.

Nothing here trains, so that the command plans runs without loading PyTorch. The protocol in words
is in docs/when_it_pays.md.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

SEEDS = 3407, 1, 2, 3, 4
FEW = SEEDS[:2]  # of what is compared beside the main question
MAIN_BATCH = 512  # of the regime "linear"

# What is done with P(match) in training, and its flags beside --teacher.
USES = {
    "plain": (), "bar_0.5": ("--match_bar", "0.5"), "bar_0.2": ("--match_bar", "0.2"),
    "bar_0.05": ("--match_bar", "0.05"), "weights": ("--posterior", "teacher"),
}
USE_LABELS = {"plain": "all are negatives", "bar_0.5": "p > .5 left out",
              "bar_0.2": "p > .2 left out", "bar_0.05": "p > .05 left out",
              "weights": "times 1 - p"}
# Who tells P(match): its embeddings are a file of this name, or it is one of --teacher's own.
SENTENCES, SHUFFLED, WORDS, RANDOM = "sentences", "shuffled", "words", "random"
TEACHERS = {
    SENTENCES: "the sentence encoder",
    SHUFFLED: "the sentence encoder, captions shuffled",
    RANDOM: "as many left out at random among the equally hard",
    WORDS: "tf-idf of the 2,000 most frequent words", "captions:100": "100 latent dimensions",
    "captions:300": "300 latent dimensions", "captions:1000": "1,000 latent dimensions",
}
FILES = {SENTENCES: SENTENCES, SHUFFLED: SHUFFLED, RANDOM: SENTENCES, WORDS: WORDS}
# Flags of train.py, over those that all runs share.
REGIMES = {
    "linear": ("--recipe", "frozen", "--num_epochs", "6"),
    "scratch": ("--freeze", "image", "--embed_size", "256"),
    "fine-tuned": ("--freeze", "image", "--embed_size", "512", "--batch_size_train", "128",
                   "--num_epochs", "1", "--easy_epochs", "0", "--learning_rate", "5e-5",
                   "--head_lr", "1e-3", "--lr_schedule", "linear"),
}
REGIME_LABELS = {"linear": "linear heads on two frozen encoders",
                 "scratch": "text encoder from scratch",
                 "fine-tuned": "the sentence encoder as text encoder, fine-tuned"}


@dataclass(frozen=True)
class TeacherRun:
    """One run of the experiment.

    Attributes:
        regime: a key of `REGIMES`.
        loss: of --loss.
        use: a key of `USES`.
        teacher: a key of `TEACHERS`; of the use "plain" it changes nothing.
        batch: B; 0 for that of the regime's preset.
        seed: of initial weights, batches and draws.
    """

    regime: str
    loss: str
    use: str
    teacher: str = SENTENCES
    batch: int = 0
    seed: int = SEEDS[0]

    @property
    def name(self) -> str:
        """The name of the run's files."""
        teacher = self.teacher.replace(":", "")
        batch = f"_b{self.batch}" if self.batch else ""
        return f"{self.regime}{batch}_{self.loss}_{self.use}_{teacher}_seed{self.seed}"


@dataclass(frozen=True)
class Places:
    """The folders and files of an experiment.

    Attributes:
        work: folder of the runs, of their teachers and of features that they share.
        results: folder of the json files of the results.
        data_path, json_path: photos and split files of Flickr8k.
        judgements: people's judgements of its test split.
        image_encoder: a frozen image encoder, its folder or Hub name.
        text_encoder: a sentence encoder, its folder or Hub name.
        more: further flags of train.py.
    """

    work: str
    results: str
    data_path: str
    json_path: str
    judgements: str
    image_encoder: str
    text_encoder: str
    more: tuple[str, ...] = ()

    def folder(self, run: TeacherRun) -> Path:
        """Return the folder of a run."""
        return Path(self.work) / run.name

    def result(self, run: TeacherRun) -> Path:
        """Return the json file of a run's result."""
        return Path(self.results) / f"{run.name}.json"

    def teacher_file(self, name: str) -> Path:
        """Return the file of embeddings of a teacher of `FILES`."""
        return Path(self.work) / "teachers" / f"{name}.npz"


def all_runs() -> dict[str, list[TeacherRun]]:
    """Return the runs of the protocol by the table that they belong to; tables share runs."""
    linear = {"regime": "linear", "batch": MAIN_BATCH}
    losses = [TeacherRun(loss=loss, use=use, seed=seed, **linear)
              for loss in ("triplet", "infonce") for use in USES
              for seed in (FEW if use == "bar_0.5" else SEEDS)]
    losses += [TeacherRun(loss=loss, use=use, seed=seed, **linear)
               for loss in ("sigmoid", "fne") for use in ("plain", "bar_0.2", "weights")
               for seed in FEW]
    controls = [TeacherRun(loss="triplet", use="bar_0.2", teacher=teacher, seed=seed, **linear)
                for teacher in TEACHERS
                for seed in (SEEDS if teacher in (SENTENCES, RANDOM, "captions:300") else FEW)]
    controls += [TeacherRun(loss="triplet", use="bar_0.05", teacher=teacher, seed=seed, **linear)
                 for teacher in (SENTENCES, RANDOM, SHUFFLED, "captions:300") for seed in FEW]
    batches = [TeacherRun("linear", loss, use, batch=batch, seed=seed)
               for batch in (128, MAIN_BATCH, 2048) for loss in ("triplet", "infonce")
               for use in ("plain", "bar_0.2") for seed in FEW]
    regimes = [TeacherRun("scratch", "triplet", use, seed=seed)
               for seed in FEW for use in ("plain", "bar_0.2")]
    regimes += [TeacherRun("fine-tuned", "infonce", use) for use in ("plain", "bar_0.2")]
    return {"losses": losses, "controls": controls, "batches": batches, "regimes": regimes}


def command(run: TeacherRun, places: Places) -> list[str]:
    """Return the flags of train.py for a run."""
    flags = ["--dataset", "flickr8k", "--data_path", places.data_path, "--json_path",
             places.json_path, "--judgements", places.judgements, "--image_encoder",
             places.image_encoder, "--image_stats", "encoder", "--image_res", "192",
             "--max_violation", "--val_times", "1", *REGIMES[run.regime], "--loss", run.loss,
             "--seed", str(run.seed)]
    if run.regime != "scratch":
        flags += ["--text_encoder", places.text_encoder]
    if run.batch:
        flags += ["--batch_size_train", str(run.batch)]
    if run.use != "plain":
        named = run.teacher
        if run.teacher in FILES:
            named = str(places.teacher_file(FILES[run.teacher]))
        flags += ["--teacher", named, *USES[run.use]]
    return [*flags, *places.more]


def to_json(run: TeacherRun, places: Places) -> str:
    """Return a run and its places as json, the one argument of experiments.teacher_run."""
    return json.dumps({"run": asdict(run), "places": asdict(places)})


def from_json(text: str) -> tuple[TeacherRun, Places]:
    """Return the run and the places that `to_json` has made a text of."""
    task = json.loads(text)
    return (TeacherRun(**task["run"]),
            Places(**task["places"] | {"more": tuple(task["places"]["more"])}))
