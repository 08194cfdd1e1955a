"""The count of operators: what it counts, and a row for each part of a step."""

import operators
import torch


def test_views_are_not_counted_and_casts_of_weights_are_told_apart():
    weight, other = torch.zeros(2, 3), torch.zeros(2, 3)
    with operators.OperatorCounter([weight]) as counter:
        weight.T.reshape(-1)[None] + torch.empty(6)  # the reshape copies, the sum adds
        weight.bfloat16()
        other.bfloat16()
        counter.lap("")
        counter.lap("")
    assert counter.laps == [{"operators": 4, "casts": 2, "of weights": 1}]


def test_each_part_of_a_step_has_a_row_and_the_loss_is_one_graph(capsys):
    operators.main(["--short"])
    output = capsys.readouterr().out
    rows = {cells[1].strip(): cells[2:-1] for cells in
            (line.split("|") for line in output.splitlines() if line.startswith("| "))}
    assert set(operators.PARTS) < set(rows) and all(int(rows[part][0].replace(",", ""))
                                                    for part in operators.PARTS)
    weights = [int(rows[part][3]) for part in operators.PARTS]
    # Matrices and biases: 6 of each layer, 2 poolers, and the patches' one. Each is cast once.
    assert weights[0] == weights[4] == 2 * (2 * 2 * 6 + 2 + 1) == sum(weights) / 2
    assert output.endswith("graphs 1, breaks 0\n")


def test_each_chunk_casts_the_weights_again(capsys):
    """In both forward passes, and where the online encoders go forward again on the way back."""
    operators.main(["--short", "--chunk", "8"])
    casts = [int(line.split("|")[5].replace(",", ""))
             for line in capsys.readouterr().out.splitlines()[2:] if line.startswith("|")]
    once, chunks = 2 * (2 * 2 * 6 + 2 + 1), 4
    assert [number for number in casts if number] == [chunks * once] * 3
