"""Numbers that are not finite, put into one place of a training step."""

import torch
from torch import nn

import train

PLACES = "pixels", "text", "keys", "loss", "gradient", "norm"


def spoil(patch, run, place, bad):
    """Let a value that is not finite come up once in one place of the step."""
    if place == "pixels":
        patch.setattr(train, "normalize", in_one_pixel(train.normalize, bad))
    elif place == "text":
        patch.setattr(run.model, "text_features", in_row_3(run.model.text_features, bad))
    elif place == "keys":
        model = run.objective.momentum_model
        patch.setattr(model, "text_features", in_row_3(model.text_features, bad))
    elif place == "loss":
        criterion = run.objective.criterion
        patch.setattr(criterion, "hinge_of", times(criterion.hinge_of, bad))
    elif place == "gradient":
        patch.setattr(torch.Tensor, "backward", backward_with(run, bad))
    else:
        patch.setattr(nn.utils, "clip_grad_norm_", times(nn.utils.clip_grad_norm_, bad))


def times(function, bad):
    """A function that gives `bad` times as much."""
    return lambda *arguments: function(*arguments) * bad


def in_row_3(function, bad):
    """A function that gives `bad` in row 3; the other rows are as good as ever."""
    def call(*arguments):
        result = function(*arguments)
        rows = torch.ones(len(result), 1)
        rows[3] = bad
        return result * rows
    return call


def in_one_pixel(function, bad):
    """A function that gives `bad` in one pixel of photo 5."""
    def call(*arguments):
        pixels = function(*arguments)
        pixels[5, 1, 7, 7] = bad
        return pixels
    return call


def backward_with(run, bad):
    """`Tensor.backward`, after which one number of the first parameter's gradient is `bad`."""
    def backward(loss, *arguments):
        torch.autograd.backward(loss, *arguments)
        gradient = run.optimizer.param_groups[0]["params"][0].grad
        gradient[(0,) * gradient.ndim] = bad
    return backward
