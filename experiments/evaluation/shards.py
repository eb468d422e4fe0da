"""AutoAttack in shards: as the command line names them, and one a process under a launcher."""

from collections.abc import Callable
from typing import Literal

import jax
from jax.experimental import multihost_utils

Shard = tuple[int, int]


def parse(text: str) -> Shard | Literal["auto"]:
    """A shard i/n with i from 0 to n - 1, such as 0/4, or auto."""
    if text == "auto":
        return text
    index, _, number = text.partition("/")
    shard = int(index), int(number)
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard={text!r} is not i/n with i from 0 to n - 1")
    return shard


def run(
    evaluate: Callable[..., dict], shard: Shard | Literal["auto"] | None
) -> tuple[dict | None, Shard | None]:
    """Evaluates a shard, or everything.

    Args:
        evaluate: takes ``shard`` and ``verbose``.
        shard: (i, n); None for everything; "auto" for the shard of this process, after which
        process 0 waits for the others and merges.

    Returns:
        The report, None where another process has it; and the shard that it is of.
    """
    if shard != "auto":
        return evaluate(shard=shard, verbose=jax.process_index() == 0), shard
    index, number = jax.process_index(), jax.process_count()
    if number > 1:
        evaluate(shard=(index, number), verbose=index == 0)
        multihost_utils.sync_global_devices("all shards are complete")
    return (evaluate(shard=None, verbose=True) if index == 0 else None), None
