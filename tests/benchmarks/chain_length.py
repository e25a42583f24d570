"""What R-hat and effective draws say of chains that forget as bif's rule has it, by their length (results/bif.md).

    python tests/benchmarks/chain_length.py [--rate 0.032] [--rows 60] [--thin 8] > table.md

Along a direction without curvature a chain of Langevin dynamics is an AR(1) process that forgets at eps gamma / 2 a
step: the slowest there is.  Row losses that follow such directions alone, independent of each other, are drawn exactly,
so that whatever R-hat and effective draws then say is of the length of the chains and not of their mixing.
"""

from __future__ import annotations

import argparse

import numpy as np

from influence_cli.maths.draws import effective_draws, split_rhat

LENGTHS = ((2, 60), (2, 250), (4, 500), (4, 1000))  # chains and draws of each
REPEATS = 20


def main() -> None:
    """Print a line for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.032, help="eps gamma / 2, of a step")
    parser.add_argument("--rows", type=int, default=60, help="row losses of which the worst is said")
    parser.add_argument("--thin", type=int, default=8, help="steps from one draw to the next")
    asked = parser.parse_args()
    rho, rng = float(np.exp(-asked.rate * asked.thin)), np.random.default_rng(0)
    print(
        "| chains x draws | largest R-hat of a row | least effective draws | effective draws, middle row | by theory |"
    )
    print("|---|---|---|---|---|")
    for chains, draws in LENGTHS:
        rhat, least, middle = list[float](), list[float](), list[float]()
        for _ in range(REPEATS):
            seen, now = np.empty((asked.rows, chains, draws)), rng.normal(size=(asked.rows, chains))
            for t in range(draws):
                seen[:, :, t] = now
                now = rho * now + (1 - rho**2) ** 0.5 * rng.normal(size=now.shape)
            rhat.append(max(split_rhat(row) for row in seen))
            effective = [effective_draws(row) for row in seen]
            least.append(min(effective))
            middle.append(float(np.median(effective)))
        ends = [f"{np.median(x):{f}} ({min(x):{f}} to {max(x):{f}})" for x, f in ((rhat, ".2f"), (least, ".0f"))]
        theory = chains * draws * (1 - rho) / (1 + rho)
        print(f"| {chains} x {draws:,} | {ends[0]} | {ends[1]} | {np.median(middle):.0f} | {theory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
