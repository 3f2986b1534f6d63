"""pgbench runs only the same statements: the limit that PostgreSQL sets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.stock import SKUS
from local.servers.postgres_server import binaries

#: `run` and `client_id` make order ids unique among runs and clients.
SCRIPT = f"""
\\set n :n + 1
\\set sku random(0, {SKUS - 1})
BEGIN;
SELECT FROM products WHERE sku = 'SKU-' || to_char(:sku::int, 'FM0000') FOR NO KEY UPDATE;
SELECT batch_reference FROM allocations
  WHERE orderid = concat(:run::text, '-', :client_id::text, '-', :n::text)
  AND sku = 'SKU-' || to_char(:sku::int, 'FM0000') AND qty = 1;
SELECT reference, eta, purchased_quantity - allocated_quantity AS room FROM batches
  WHERE sku = 'SKU-' || to_char(:sku::int, 'FM0000') AND open ORDER BY eta NULLS FIRST, reference \\gset
INSERT INTO allocations (orderid, sku, qty, batch_reference) VALUES (
  concat(:run::text, '-', :client_id::text, '-', :n::text),
  'SKU-' || to_char(:sku::int, 'FM0000'), 1, :reference);
UPDATE batches SET allocated_quantity = allocated_quantity + 1 WHERE reference = :reference;
INSERT INTO inbox (task_id, command, result) VALUES (
  concat(:run::text, '-', :client_id::text, '-', :n::text), 'Allocate', to_jsonb(:reference::text));
COMMIT;
"""  # noqa: S608  # the only value is a constant

TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


def run(folder: Path, url: str, clients: int, lines: int, name: str) -> float:
    """Allocate this many lines and return the rate per second."""
    script = folder / "allocate.pgbench"
    script.write_text(SCRIPT)
    server = urlsplit(url)
    command = [
        str(binaries() / "pgbench"), "--no-vacuum", "--protocol=prepared", f"--file={script}",
        f"--client={clients}", f"--jobs={clients}", f"--transactions={lines // clients}",
        "--define=n=0", f"--define=run={name}", f"--host={server.hostname}", f"--port={server.port}",
        f"--username={server.username}", server.path.strip("/"),
    ]  # fmt: skip
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    if result.returncode:
        raise RuntimeError(f"pgbench ended with status {result.returncode}: {result.stderr[-1000:]}")
    return parse_tps(result.stdout)


def parse_tps(output: str) -> float:
    """Read transactions per second, without the time to connect, from the output of pgbench."""
    found = TPS.search(output)
    if found is None:
        raise ValueError(f"pgbench printed no tps: {output[-500:]}")
    return float(found[1])
