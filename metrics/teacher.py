"""A teacher's P(match) for a split that is scored.

Its Gaussians are fitted to the split itself, to what is annotated and without any other label, as
those of the posterior by evidence are (`metrics/evidence.py`). The photo plays no part: the teacher
compares a caption with the photo's own captions.
"""

from common.presets import PRIOR_OF_EVIDENCE
from metrics.embeddings import Embeddings
from teacher.posterior import TeacherPosterior


def fit_teacher(embeddings: Embeddings) -> TeacherPosterior | None:
    """Fit a teacher's P(match) to a split, with prior 0.01.

    Args:
        embeddings: Embeddings of a split.

    Returns:
        P(match) of the split's photos and captions; None where the embeddings have no
        `teacher_embeds`.

    Raises:
        InputError: If fewer than two photos have captions.
    """
    if embeddings.teacher_embeds is None:
        return None
    return TeacherPosterior.of_split(embeddings.teacher_embeds, embeddings.split, PRIOR_OF_EVIDENCE)
