"""The method written slowly, in plain Python floats, from the formulas of the paper.

Everything is a list: vectors are lists of floats, matrices lists of rows, one candidate at a time.
The fast code is compared with this file, so nothing here may be taken from it.
"""

import math

EMPTY = -100
NOTHING = -1


def lists(*tensors):
    """Tensors as (nested) lists of Python numbers."""
    return [tensor.detach().tolist() for tensor in tensors]


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def similarities(anchors, candidates):
    return [[dot(anchor, candidate) for candidate in candidates] for anchor in anchors]


def transposed(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


class Statistics:
    """n, mean and sum of squared deviations; the mean moves over a whole batch first."""

    def __init__(self, count=0, mean=0.0, m2=0.0):
        self.count, self.mean, self.m2 = count, mean, m2

    def update(self, values):
        if not values:
            return
        total = self.mean * self.count + math.fsum(values)
        self.count += len(values)
        self.mean = total / self.count
        for value in values:
            self.m2 += (value - self.mean) ** 2

    @property
    def variance(self):
        return self.m2 / (self.count - 1) if self.count > 1 else 0.0


def negatives(matrix, row, ids, barred=None):
    """In row `row` of an in-batch matrix, the similarities to other photos that are not `barred`,
    a matrix as well."""
    return [matrix[row][other] for other in range(len(ids))
            if ids[other] != ids[row] and not (barred and barred[row][other])]


def is_confident(similarity, row, ids):
    """No text beats the image's own one, and no image beats the text's own one."""
    own = similarity[row][row]
    rivals = negatives(similarity, row, ids) + negatives(transposed(similarity), row, ids)
    return all(own > rival for rival in rivals)


def confident_pairs(similarity, ids):
    return [is_confident(similarity, row, ids) for row in range(len(ids))]


def update_statistics(positive, negative, images, texts, ids):
    similarity = similarities(images, texts)
    good, bad = [], []
    for row in range(len(ids)):
        if is_confident(similarity, row, ids):
            good.append(similarity[row][row])
            for matrix in (similarity, transposed(similarity)):
                bad += [max(found) for found in [negatives(matrix, row, ids)] if found]
    positive.update(good)
    negative.update(bad)


def log_normal(value, statistics):
    variance = statistics.variance
    return -((value - statistics.mean) ** 2) / (2 * variance) - math.log(variance) / 2


def posterior(value, positive, negative, prior):
    """prior N+ / (prior N+ + (1 - prior) N-), both terms divided by the larger one."""
    match = math.log(prior) + log_normal(value, positive)
    other = math.log1p(-prior) + log_normal(value, negative)
    top = max(match, other)
    match, other = math.exp(match - top), math.exp(other - top)
    return match / (match + other)


def weight(value, own, excluded, positive, negative, *, margin, tau, prior, floor, min_count):
    """The weight of one candidate of similarity `value`, for an anchor whose match has `own`."""
    if excluded or value <= positive.mean - margin:
        return 0.0
    if positive.count > min_count:
        probability = posterior(value, positive, negative, prior)
        if probability > floor:
            return math.exp(-tau * probability)
    return math.exp(-tau * (value - own) ** 2)


def is_excluded(anchor_id, candidate_id):
    return candidate_id == EMPTY or candidate_id == anchor_id


def weights(anchors, candidates, ids, candidate_ids, positive, negative, **settings):
    """(B, C): candidates are the batch's keys, then the bank's."""
    rows = []
    for i, similarity in enumerate(similarities(anchors, candidates)):
        rows.append([
            weight(value, similarity[i], is_excluded(ids[i], candidate_ids[c]),
                   positive, negative, **settings)
            for c, value in enumerate(similarity)
        ])
    return rows


def fallbacks(anchors, candidates, ids, candidate_ids):
    """The hardest allowed candidate of each anchor, or NOTHING."""
    found = []
    for i, similarity in enumerate(similarities(anchors, candidates)):
        allowed = [c for c in range(len(candidates)) if not is_excluded(ids[i], candidate_ids[c])]
        found.append(max(allowed, key=similarity.__getitem__) if allowed else NOTHING)
    return found


def hinge(anchors, keys, drawn, margin):
    total = 0.0
    for i, negative in enumerate(drawn):
        if negative != NOTHING:
            gap = margin + dot(anchors[i], keys[negative]) - dot(anchors[i], keys[i])
            total += max(0.0, gap)
    return total / len(anchors)


def both_ways(matrix):
    """An in-batch matrix with images in rows, and with texts in rows; or None, twice."""
    return (matrix, transposed(matrix)) if matrix else (None, None)


def triplet(images, texts, ids, margin, hardest, barred=None):
    similarity = similarities(images, texts)
    total = 0.0
    for row in range(len(ids)):
        for matrix, out in zip(both_ways(similarity), both_ways(barred)):
            costs = [
                max(0.0, margin + value - similarity[row][row])
                for value in negatives(matrix, row, ids, out)
            ]
            total += max(costs, default=0.0) if hardest else sum(costs)
    return total / len(ids)


def sigmoid(images, texts, ids, scale, bias, excluded=None):
    """Sum over all pairs of log(1 + exp(-z (scale s + bias))), z = 1 for a match, over B."""
    similarity = similarities(images, texts)
    total = 0.0
    for row in range(len(ids)):
        total += math.log1p(math.exp(-(scale * similarity[row][row] + bias)))
        for value in negatives(similarity, row, ids, excluded):
            total += math.log1p(math.exp(scale * value + bias))
    return total / len(ids)


def infonce(images, texts, ids, scale, barred=None):
    """Mean over anchors and directions of -log softmax(scale s), the match against other photos."""
    similarity = similarities(images, texts)
    total = 0.0
    for row in range(len(ids)):
        own = scale * similarity[row][row]
        for matrix, out in zip(both_ways(similarity), both_ways(barred)):
            logits = [own] + [scale * value for value in negatives(matrix, row, ids, out)]
            top = max(logits)
            total += top + math.log(sum(math.exp(value - top) for value in logits)) - own
    return total / (2 * len(ids))
