"""Recurrent operators with their default activation functions."""

from __future__ import annotations

import torch
from torch import Tensor

from infoq_onnx.torch_graph.attributes import Attributes, Operator


def _directions(attributes: Attributes) -> list[bool]:
    """Return for each direction whether it runs backwards."""
    return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
        attributes.get("direction", "forward")
    ]


def _lstm(
    attributes: Attributes,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    del lengths  # `refusal` lets none through
    size, batch = r.shape[2], x.shape[1]
    outputs, lasts, cells = [], [], []
    for index, backwards in enumerate(_directions(attributes)):
        state = x.new_zeros((batch, size)) if hidden is None else hidden[index]
        memory = x.new_zeros((batch, size)) if cell is None else cell[index]
        products = x @ w[index].T
        if b is not None:
            products = products + b[index, : 4 * size] + b[index, 4 * size :]
        steps = range(len(x) - 1, -1, -1) if backwards else range(len(x))
        found: list[Tensor] = [x] * len(x)
        for step in steps:
            into, out, forget, new = (products[step] + state @ r[index].T).chunk(4, dim=1)
            memory = torch.sigmoid(forget) * memory + torch.sigmoid(into) * torch.tanh(new)
            state = torch.sigmoid(out) * torch.tanh(memory)
            found[step] = state
        outputs.append(torch.stack(found))
        lasts.append(state)
        cells.append(memory)
    return torch.stack(outputs, dim=1), torch.stack(lasts), torch.stack(cells)


def _gru(
    attributes: Attributes,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    del lengths
    size, batch = r.shape[2], x.shape[1]
    outputs, lasts = [], []
    for index, backwards in enumerate(_directions(attributes)):
        state = x.new_zeros((batch, size)) if hidden is None else hidden[index]
        own, recurrent = (x.new_zeros(3 * size),) * 2 if b is None else (b[index, : 3 * size], b[index, 3 * size :])
        products = x @ w[index].T + own
        steps = range(len(x) - 1, -1, -1) if backwards else range(len(x))
        found: list[Tensor] = [x] * len(x)
        for step in steps:
            of_x = products[step].chunk(3, dim=1)
            if attributes.get("linear_before_reset", 0):
                of_state = (state @ r[index].T + recurrent).chunk(3, dim=1)
                update, reset = torch.sigmoid(of_x[0] + of_state[0]), torch.sigmoid(of_x[1] + of_state[1])
                new = torch.tanh(of_x[2] + reset * of_state[2])
            else:
                gates, last = r[index, : 2 * size], r[index, 2 * size :]
                of_state = (state @ gates.T + recurrent[: 2 * size]).chunk(2, dim=1)
                update, reset = torch.sigmoid(of_x[0] + of_state[0]), torch.sigmoid(of_x[1] + of_state[1])
                new = torch.tanh(of_x[2] + (reset * state) @ last.T + recurrent[2 * size :])
            state = (1 - update) * new + update * state
            found[step] = state
        outputs.append(torch.stack(found))
        lasts.append(state)
    return torch.stack(outputs, dim=1), torch.stack(lasts)


RECURRENT: dict[str, Operator] = {"GRU": _gru, "LSTM": _lstm}
