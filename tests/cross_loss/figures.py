"""Figures of docs/cross-loss.md: how well each estimate agrees with leave-one-out.

``python tests/cross_loss/figures.py`` prints them, in about three minutes.
"""

from __future__ import annotations

import mixture_of_gaussians as mixture
import numpy as np
import published_demo

from fastinfluence.evaluation import pearson, per_query, spearman


def estimates(problem, n_steps):
    """Influence on the likelihood of every point by several methods, each (n_queries, n_train).

    The last is on the *training* loss, at its targets after training: what one would compute
    who explains with the loss that was trained.
    """
    theta = mixture.train(problem, np.ones(problem.n), n_steps)
    targets = mixture.targets_at(problem, theta)

    def matched(problem, theta):
        return mixture.training_losses(problem, theta, targets)

    return {
        "replay": mixture.replay(problem, n_steps),
        "replay, target held constant": mixture.replay(problem, n_steps, detached=True),
        "influence function": mixture.influence_function(problem, n_steps),
        "influence function, target held constant": mixture.influence_function(
            problem, n_steps, detached=True
        ),
        "replay of the training loss": mixture.replay(problem, n_steps, matched),
    }


def agreement(n_steps, seeds):
    """Pearson and Spearman of every method's influence, {method: (2, n_seeds, n_queries)}."""
    found = {}
    for seed in seeds:
        problem = mixture.problem(seed)
        truth = mixture.leave_one_out(problem, n_steps)
        for name, influence in estimates(problem, n_steps).items():
            both = [per_query(metric, influence, truth) for metric in (pearson, spearman)]
            found.setdefault(name, []).append(both)
    return {name: np.swapaxes(both, 0, 1) for name, both in found.items()}


def demonstration(seed):
    """Mean Pearson over the queries of each component by the published protocol, {method: (3,)}."""
    problem = mixture.problem(seed, noise=0.5)
    truth = published_demo.truth(problem)
    return {
        name: per_query(pearson, influence, truth).reshape(3, mixture.OF_EACH).mean(axis=1)
        for name, influence in published_demo.estimates(problem).items()
    }


def main():
    """Print all figures."""
    for n_steps in (20, 100):
        print(
            f"{n_steps} steps, seeds 0 to 7: Pearson mean, worst seed, worst query; Spearman mean"
        )
        for name, (linear, ranked) in agreement(n_steps, range(8)).items():
            print(
                f"{name:<42}{linear.mean():7.3f}{linear.mean(axis=1).min():7.3f}"
                f"{linear.min():7.3f}{ranked.mean():7.3f}"
            )
    print("published protocol: mean Pearson of each class")
    for seed in range(4):
        for name, classes in demonstration(seed).items():
            print(f"seed {seed} {name:<21}" + "".join(f"{value:7.3f}" for value in classes))


if __name__ == "__main__":
    main()
