"""P(match) of a photo and a caption, from how a teacher sees the captions alone.

A photo is described by its own captions. A caption of another photo that a teacher takes for a
paraphrase of them is probably true of the photo as well. With e_t the teacher's unit embedding of
caption t, and m_i the mean embedding of the captions of photo i, the evidence is

    r(i, t) = m_i . e_t        the mean similarity of caption t to the captions of photo i

and by Bayes' rule, as in the paper (section 3.2) but with this evidence,

    p(i, t) = prior N+(r) / (prior N+(r) + (1 - prior) N-(r)).

N+ is fitted to captions and the other captions of their own photo, N- to captions and the captions
of all other photos: to what is annotated, and to no other label. Both are fitted once, before the
training. p never falls as r grows: where one Gaussian is wider than the other, the ratio of their
densities turns back in one tail, and stays there at its value where it turns.

Shapes: N_i photos, N_t captions, W the width of the teacher's embeddings, A photos and c captions
that are compared.
"""

import hashlib

import torch
from torch import Tensor, nn

from common.errors import InputError
from fne_loss import LEAST_VARIANCE, RunningGaussian, false_negative_posterior
from inputs.splits import Split

LEAST_PAIRS = 30  # captions with a further caption of their photo, from which N+ is fitted to them
ROWS = 65536  # embeddings that are made float64 at a time
SAMPLE = 256  # captions that are compared with all others where no photo has several


class TeacherPosterior(nn.Module):
    """P(match) of photos and captions of one split, by a teacher's embeddings of the captions.

    Buffers:
        caption_embeds: (N_t, W) float16, unit rows; not saved by `state_dict`.
        photo_embeds: (N_i, W) float16, the mean embedding of each photo's captions; not saved.
        digest: (16,) uint8 of `caption_embeds`.
    The fitted Gaussians are `positive` and `negative`, N+ and N-.

    Args:
        caption_embeds: (N_t, W) float16, unit rows.
        image_of_text: (N_t,) int64, photo of each caption.
        photos: N_i.
        prior: P(match) of a photo and a caption of another photo, before anything is known.

    Raises:
        ValueError: fewer than two photos have captions, so that nothing can be compared.
    """

    def __init__(self, caption_embeds: Tensor, image_of_text: Tensor, photos: int, prior: float):
        super().__init__()
        self.prior = prior
        photo_embeds, self.positive, self.negative = fit_posterior(
            caption_embeds, image_of_text, photos, prior)
        self.register_buffer("caption_embeds", caption_embeds, persistent=False)  # (N_t, W)
        self.register_buffer("photo_embeds", photo_embeds, persistent=False)  # (N_i, W)
        self.register_buffer("digest", embeds_digest(caption_embeds))  # (16,)

    @classmethod
    def of_split(cls, caption_embeds: Tensor, split: Split, prior: float) -> "TeacherPosterior":
        """Fit P(match) of photos and captions to what is annotated in a split.

        Args:
            caption_embeds: (N_t, W) float16, unit rows, in the order of the split's captions.
            split: N_i photos, N_t captions, and the photo of each caption.
            prior: P(match), as for the constructor.

        Raises:
            InputError: fewer than two photos of the split have captions.
        """
        try:
            return cls(caption_embeds, torch.from_numpy(split.image_of_text), len(split.images),
                       prior)
        except ValueError as error:
            raise InputError(f"{split.source}: {error}") from error

    def posterior(self, image_ids: Tensor, text_ids: Tensor) -> Tensor:
        """Compute P(match) of each photo with each caption.

        Args:
            image_ids: (A,) int64 photos; a negative id is unknown.
            text_ids: (c,) int64 captions; a negative id is unknown.

        Returns:
            (A, c) float32 in [0, 1]; 0 where photo or caption is unknown. That of a photo and its
            own caption has no meaning, since the caption is compared with itself.
        """
        photos = self.photo_embeds[image_ids.clamp(min=0)].float()  # (A, W)
        captions = self.caption_embeds[text_ids.clamp(min=0)].float()  # (c, W)
        with torch.autocast(photos.device.type, enabled=False):
            posterior = self.from_similarity(photos @ captions.T)  # (A, c)
        return posterior * ((image_ids >= 0)[:, None] & (text_ids >= 0))

    def of_pairs(self, image_ids: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the similarity r (J,) and P(match) (J,) of J pairs, in float32.

        Args:
            image_ids: (J,) int64 photos.
            text_ids: (J,) int64 captions, each of another photo.
        """
        r = (self.photo_embeds[image_ids].float() * self.caption_embeds[text_ids].float()).sum(1)
        return r, self.from_similarity(r)

    def from_similarity(self, similarity: Tensor) -> Tensor:
        """Compute P(match) from mean similarities r of any shape; it never falls as r grows."""
        turn, is_lowest = self.turning_point()
        turn = turn.to(similarity.dtype)
        rising = torch.where(is_lowest, similarity.maximum(turn), similarity.minimum(turn))
        return false_negative_posterior(rising, self.positive, self.negative, self.prior)

    def turning_point(self) -> tuple[Tensor, Tensor]:
        """Find the similarity at which the ratio N+ / N- turns back.

        Returns:
            () float64, infinite where it nowhere turns; and () bool, whether the ratio is lowest
            there (N+ is the wider of the two) and not highest.
        """
        narrowness = [1 / gaussian.variance.clamp(min=LEAST_VARIANCE)
                      for gaussian in (self.positive, self.negative)]
        is_lowest = narrowness[0] < narrowness[1]
        turn = ((self.positive.mean * narrowness[0] - self.negative.mean * narrowness[1])
                / (narrowness[0] - narrowness[1]))
        return turn.where(narrowness[0] != narrowness[1], torch.inf), is_lowest

    def check_digest(self, state: dict[str, Tensor]) -> None:
        """Check that a state of this module is of the same embeddings.

        Args:
            state: a `state_dict`.

        Raises:
            ValueError: it is of others.
        """
        if not torch.equal(state["digest"].cpu(), self.digest.cpu()):
            raise ValueError("the teacher embeds the captions otherwise than the run has learned "
                             "from: give it the --teacher, and the captions, that it began with")


def embeds_digest(embeds: Tensor) -> Tensor:
    """Compute a digest (16,) uint8 of the bits and the shape of embeddings."""
    digest = hashlib.blake2b(str(tuple(embeds.shape)).encode(), digest_size=16)
    digest.update(embeds.cpu().contiguous().view(torch.uint8).numpy())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


# ------------------------------------------------------------------------------------------ fitting


@torch.no_grad()
def fit_posterior(
    caption_embeds: Tensor, image_of_text: Tensor, photos: int, prior: float
) -> tuple[Tensor, RunningGaussian, RunningGaussian]:
    """Fit N+ and N- to the captions of a split, and average the captions of each photo.

    N- has all N_i N_t - N_t pairs of a photo and another photo's caption. They are not visited: the
    sum of r over all pairs is the product of two sums, and the sum of r^2 is the product of two
    (W, W) matrices of second moments, of which the pairs of one photo are taken off.

    Args:
        caption_embeds: (N_t, W) unit rows.
        image_of_text: (N_t,) int64.
        photos: N_i.
        prior: P(match); where no photo has several captions, N+ is fitted to the most similar pairs
            of captions, so large a share of all.

    Returns:
        (N_i, W) float16 mean embeddings of the photos' captions, N+ and N-.

    Raises:
        ValueError: fewer than two photos have captions.
    """
    count = torch.bincount(image_of_text, minlength=photos)  # (N_i,)
    described = int((count > 0).sum())
    if described < 2:
        raise ValueError("a teacher compares the captions of different photos: two photos at least "
                         "must have captions")
    width, dtype, device = caption_embeds.shape[1], torch.float64, caption_embeds.device
    sums = torch.zeros(photos, width, dtype=dtype, device=device)  # (N_i, W)
    for rows in blocks(len(caption_embeds)):
        sums.index_add_(0, image_of_text[rows], caption_embeds[rows].double())
    means = sums / count.clamp(min=1)[:, None]  # (N_i, W)
    sibling_r, own_r = [], []  # with the other captions of its photo, and with all of them
    caption_sum = torch.zeros(width, dtype=dtype, device=device)
    caption_moments = torch.zeros(width, width, dtype=dtype, device=device)
    for rows in blocks(len(caption_embeds)):
        embeds, image = caption_embeds[rows].double(), image_of_text[rows]  # (n, W), (n,)
        caption_sum += embeds.sum(dim=0)
        caption_moments += embeds.T @ embeds
        own_r.append((means[image] * embeds).sum(dim=1))
        others = count[image] - 1  # (n,)
        r = ((sums[image] - embeds) * embeds).sum(dim=1) / others.clamp(min=1)
        sibling_r.append(r[others > 0])
    own_r, sibling_r = torch.cat(own_r), torch.cat(sibling_r)
    negative = gaussian_of_sums(
        described * len(caption_embeds) - len(caption_embeds),
        means.sum(dim=0) @ caption_sum - own_r.sum(),
        (means.T @ means * caption_moments).sum() - own_r.square().sum())
    if len(sibling_r) >= LEAST_PAIRS:
        positive = gaussian_of_sums(len(sibling_r), sibling_r.sum(), sibling_r.square().sum())
    else:
        mean = mean_of_most_similar(caption_embeds, image_of_text, prior)
        positive = RunningGaussian().to(device)
        positive.load_state_dict(negative.state_dict() | {"mean": mean})
    return means.half(), positive, negative


def blocks(count: int) -> list[slice]:
    """Split `count` rows into slices of at most `ROWS`."""
    return [slice(start, start + ROWS) for start in range(0, count, ROWS)]


def gaussian_of_sums(count: int, total: Tensor, squares: Tensor) -> RunningGaussian:
    """Return the Gaussian of `count` values with a given sum () and sum of squares ()."""
    gaussian = RunningGaussian().to(total.device)
    gaussian.count.fill_(count)
    gaussian.mean.copy_(total / count)
    gaussian.m2.copy_((squares - total.square() / count).clamp(min=0))
    return gaussian


def mean_of_most_similar(caption_embeds: Tensor, image_of_text: Tensor, share: float) -> Tensor:
    """Compute the mean similarity of the most similar pairs of captions of different photos.

    Where each photo has one caption, no annotated pair of captions says how similar two captions of
    one photo are. If the prior is right, the `share` of pairs that are matches are the most similar
    ones. N+ has their mean, and the variance of N-, since their own is that of a cut tail.

    Args:
        caption_embeds: (N_t, W) unit rows.
        image_of_text: (N_t,) int64.
        share: of the pairs that is taken.

    Returns:
        () float64.
    """
    step = max(1, len(caption_embeds) // SAMPLE)
    chosen = caption_embeds[::step].float()  # (n, W)
    other = image_of_text[::step, None] != image_of_text  # (n, N_t)
    similarity = (chosen @ caption_embeds.float().T)[other]
    return similarity.topk(max(1, round(share * len(similarity)))).values.double().mean()
