"""Page "pytorch": a net written in PyTorch, trained from its own initialisation and from the optimum.

A ReLU net, 784-500-200-z-200-500-784 on MNIST; Adam. It starts as PyTorch makes it, at the closed form, or at the
tightened optimum, put into its layers by ``numpy.asarray``. Left out, with a word, where PyTorch is not installed.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np

from benchmarks import packages
from benchmarks.problems import Problem
from benchmarks.report import COLOURS, aligned, panels
from glmvae import datasets, fit, tighten
from glmvae.families import Bernoulli

LATENT_DIMS = (20,)
DATA, QUICK_DATA = ("mnist",), ("digits",)
WIDTHS = (500, 200)
RATE, BATCH = 1e-3, 100
STEPS, QUICK_STEPS, EVERY, QUICK_EVERY = 1000, 40, 20, 10
#: The step that the table tells of beside the first and the last.
EARLY = 200
DRAWS = 4
STARTS = ("PyTorch's own", "closed form", "tightened")


def total(found: list[Problem], options: argparse.Namespace) -> int:
    """A run for every start."""
    return len(found) * len(options.latent_dims) * len(STARTS)


def measure(found: list[Problem], options: argparse.Namespace, result: dict[str, Any], bar: Any) -> None:
    """Append a row for every data set and kappa."""
    torch = packages.peer("torch")
    if torch is None:
        result["missing"]["torch"] = "PyTorch is not installed"
        bar.write("torch is left out: PyTorch is not installed")
        return
    steps, every = (QUICK_STEPS, QUICK_EVERY) if options.quick else (STEPS, EVERY)
    result["settings"] |= {"learning_rate": RATE, "batch_size": BATCH, "widths": WIDTHS, "draws": DRAWS}
    result["versions"]["torch"] = torch.__version__
    for problem in found:
        data = datasets.load(problem.name, download=False)
        train, test = (np.asarray(x, np.float32) / np.float32(np.max(data.train)) for x in (data.train, data.test))
        for units in options.latent_dims:
            closed = fit(train, Bernoulli(), units)
            optima = (None, closed, tighten(closed, train))
            row: dict[str, Any] = {"data": problem.name, "latent_dim": units, "steps": [*range(0, steps + 1, every)]}
            result["rows"].append(row | {"curves": (curves := {})})
            for name, optimum in zip(STARTS, optima, strict=True):
                bar.set_description(f"{problem.name}, kappa {units}, {name}")
                curves[name] = trained(torch, train, test, units, optimum, steps, every, options.seed)
                bar.update()


def trained(
    torch: Any, train: np.ndarray, test: np.ndarray, units: int, optimum: Any, steps: int, every: int, seed: int
) -> list[float]:
    """The ELBO of the test rows, nats per row, at the start and every so many steps."""
    torch.manual_seed(seed)
    net = make_net(torch, train.shape[1], units)
    if optimum is not None:
        start_at(torch, optimum, net)
    parameters = [p for part in net.values() for p in part.parameters()]
    adam, found = torch.optim.Adam(parameters, lr=RATE), []
    rows, held_out = torch.tensor(train), torch.tensor(test)
    for step in range(steps + 1):
        if step % every == 0:
            with torch.no_grad():
                found.append(-float(np.mean([loss(torch, net, held_out).item() for _ in range(DRAWS)])))
        adam.zero_grad()
        loss(torch, net, rows[torch.randint(len(rows), (BATCH,))]).backward()
        adam.step()
    return found


def make_net(torch: Any, columns: int, units: int) -> dict[str, Any]:
    """Encoder, heads and decoder."""
    nn = torch.nn

    def layers(*widths: int) -> list[Any]:
        return [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]

    return {
        "encoder": nn.Sequential(*layers(columns, *WIDTHS)),
        "mean": nn.Linear(WIDTHS[-1], units),
        "log_variance": nn.Linear(WIDTHS[-1], units),
        "decoder": nn.Sequential(*layers(units, *WIDTHS[::-1]), nn.Linear(WIDTHS[0], columns)),
    }


def loss(torch: Any, net: dict[str, Any], x: Any) -> Any:
    """Minus the ELBO of Bernoulli rows, by one draw each; the mean over rows."""
    hidden = net["encoder"](x)
    mean, log_variance = net["mean"](hidden), net["log_variance"](hidden)
    logits = net["decoder"](mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    return (entropy + 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(1)).mean()


def start_at(torch: Any, optimum: Any, net: dict[str, Any]) -> None:
    """The affine maps of an optimum, carried through by z = relu(z) - relu(-z)."""
    linear = torch.nn.Linear
    encoder, decoder = ([m for m in net[part] if isinstance(m, linear)] for part in ("encoder", "decoder"))
    units = optimum.loadings.shape[1]
    both = np.vstack([np.eye(units), -np.eye(units)]).astype(np.float32)
    variance = np.diag(np.asarray(optimum.encoder.covariance))
    _put(torch, encoder[0], both @ np.asarray(optimum.encoder.weight), both @ np.asarray(optimum.encoder.bias))
    _put(torch, decoder[0], both, 0.0)
    _put(torch, net["mean"], both.T, 0.0)
    _put(torch, net["log_variance"], 0 * both.T, np.log(variance))
    _put(torch, decoder[-1], np.asarray(optimum.loadings) @ both.T, np.asarray(optimum.intercept))
    for layer in encoder[1:] + decoder[1:-1]:
        _put(torch, layer, np.eye(2 * units, dtype=np.float32), 0.0)


def _put(torch: Any, layer: Any, weight: np.ndarray, bias: Any) -> None:
    with torch.no_grad():
        layer.weight[: len(weight)] = 0.0
        layer.weight[: len(weight), : weight.shape[1]] = torch.tensor(weight)
        layer.bias[: len(weight)] = torch.as_tensor(np.array(bias))


def table(result: dict[str, Any]) -> str:
    """A line a start."""
    lines = []
    for row in result["rows"]:
        early = row["steps"].index(EARLY) if EARLY in row["steps"] else len(row["steps"]) // 2
        for name, curve in row["curves"].items():
            at = [f"{curve[i]:.1f}" if i < len(curve) else "-" for i in (0, early, len(row["steps"]) - 1)]
            lines.append([row["data"], str(row["latent_dim"]), name, *at])
        head = ["data", "kappa", "start", "at the start", f"step {row['steps'][early]}", f"step {row['steps'][-1]}"]
    return aligned(head, lines, left=3) + "\n\nELBO of the test rows, nats per row."


def draw(result: dict[str, Any]) -> Any:
    """ELBO over steps, a panel for every row."""
    rows = result["rows"]
    figure, axes = panels(len(rows), "A net in PyTorch: where it starts", size=(7.0, 4.2))
    for axis, row in zip(axes, rows, strict=True):
        for colour, (name, curve) in zip(COLOURS, row["curves"].items(), strict=False):
            axis.plot(row["steps"][: len(curve)], curve, color=colour, label=f"{name}: {curve[0]:.0f} at the start")
        ends = [value for curve in row["curves"].values() for value in curve[len(curve) // 4 :]]
        best = max(ends)
        lowest = min(curve[0] for name, curve in row["curves"].items() if name != STARTS[0])
        axis.set_ylim(lowest - 0.05 * (best - lowest), best + 0.05 * (best - lowest))
        axis.set(
            xlabel="training step",
            ylabel="ELBO of the test rows, nats",
            title=f"{row['data']}, {row['latent_dim']} latent units",
        )
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    return figure
