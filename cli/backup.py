"""`tensorbus backup`: a copy of a broker's directory that a broker can start from."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .output import print_json, size

EPILOG = """\b
Example, every night, to a disk of its own; only what is new is copied:
  tensorbus backup --data /var/lib/tensorbus /mnt/backup/tensorbus

\b
To restore, stop the broker, put the copy in place of its directory, and start it:
  mv /var/lib/tensorbus /var/lib/tensorbus.old
  cp -a /mnt/backup/tensorbus /var/lib/tensorbus
  tensorbus scrub --data /var/lib/tensorbus

\b
Exit codes: 0 all is copied, 1 it is not, or a message has no frame file (all others are copied).
"""


@click.command("backup", epilog=EPILOG)
@click.argument("target", metavar="TARGET", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The data directory of a broker, which may be running.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as a JSON object.")
def command(target: Path, data: Path, as_json: bool) -> None:
    """Copy a broker's directory to TARGET, which is empty, missing, or holds the last backup.

    Whatever was acknowledged before it begins is in it, also consumers, policies, resumable uploads and
    tokens. What it replaces stays whole until the new one is complete.
    """
    from tensorbus.bus.stores.backup import back_up

    report = back_up(data, target)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(f"{report.messages} messages; {report.files} files, {size(report.bytes)}, were copied")
        if report.damaged:
            click.echo(f"{report.damaged} messages were damaged before, and have no frames in the backup")
        for message_id in report.missing:
            click.echo(f"missing   {message_id}", err=True)
    if report.missing:
        sys.exit(1)
