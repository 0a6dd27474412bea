"""Federations of 10,000 and of 1,000,000 sites in virtual time: what a round takes, and what holds it up.

    python bench/scale.py --measure                         # service times of this machine
    python bench/scale.py --json rows.json                  # the table, from those service times
    python bench/scale.py --rows rows.json --plot scale.png
    python bench/scale.py --trees 100x100 --codecs none nf4 --up 20 --training 0

Sites, their links and their training are drawn from distributions (``bench/scaling/settings.py``); what a
broker and an aggregator take for a message was measured with real processes. What holds a round up is found
by taking one limit away at a time: the seconds that are gained are what that limit costs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from scaling.report import Row, plot, read, simulated, table, write
from scaling.settings import Service, Settings
from scaling.tree import Federation

SERVICE = Path(__file__).parent / "results" / "service.json"
"""Where the service times are kept."""

CODECS = ("none", "bf16", "int8", "nf4", "delta | uniform", "delta | rotate | lloyd:2")
TREES = ("10000", "100x100", "22x22x21", "1000x1000", "100x100x100")
MBIT = 1e6 / 8


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """Each tree with each codec; the sites of a tree are the same for all codecs."""
    services = {each["codec"]: Service(**each) for each in json.loads(SERVICE.read_text(encoding="utf-8"))}
    for tree in options.trees:
        settings = Settings(
            tuple(int(part) for part in tree.split("x")),
            services[options.codecs[0]],
            network=options.network * 1000 * MBIT,
            up=options.up * MBIT,
            down=options.down * MBIT,
            training=options.training,
            quorum=options.quorum,
        )
        federation = Federation(settings)
        for codec in options.codecs:
            yield simulated(federation, replace(settings, service=services[codec]))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure the service times and keep them")
    parser.add_argument("--megabytes", type=int, default=256, help="of the messages measured")
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    parser.add_argument("--trees", nargs="+", default=TREES, help="children from the root down, 100x100")
    parser.add_argument("--up", type=float, default=50, help="median uplink of a site, Mbit/s")
    parser.add_argument("--down", type=float, default=200, help="median downlink of a site, Mbit/s")
    parser.add_argument("--network", type=float, default=10, help="of a node, Gbit/s")
    parser.add_argument("--training", type=float, default=600, help="median seconds")
    parser.add_argument("--quorum", type=float, default=0.95, help="share of its children a node waits for")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--rows", type=Path, help="read the rows from here instead of simulating")
    parser.add_argument("--plot", type=Path, help="draw them into this PNG")
    options = parser.parse_args()
    if options.measure:
        from scaling.measure import measure

        found = [asdict(service) for service in measure(list(options.codecs), options.megabytes)]
        SERVICE.parent.mkdir(exist_ok=True)
        SERVICE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(SERVICE.read_text(encoding="utf-8"))
        return
    rows: list[Row] = []
    for row in read(options.rows) if options.rows else rows_of(options):
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
    print(f"\n{table(rows)}")
    if options.json:
        write(rows, options.json)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
