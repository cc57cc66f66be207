"""Which token ids the checkpoint reserves: read where it says so, the family's released ids where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlm_edge.errors import InputFileError
from dlm_edge.families.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedIds:
    """Ids of the released checkpoints of a family."""

    mask: int
    eos: int
    pad: int
    stops: tuple[int, ...]
    bos: int | None = None


def read_ids(settings: Settings, released: ReleasedIds, rows: int) -> dict[str, Any]:
    """mask_id, eos_id, pad_id, bos_id and stop_ids for `Conventions`, each below `rows` (the embedding's).

    config.json comes first, then generation_config.json, then (mask only) the tokenizer, then the family.
    All end-of-text ids of the files are stop ids; the family's further stop ids join them where the
    checkpoint ends its texts with the family's own id, that is, where it has the released vocabulary.
    """
    eos = _listed(settings, "eos_token_id") or [released.eos]
    mask = _first(settings, "mask_token_id")
    if mask is None:
        mask = settings.tokenizer_mask_id
    elif settings.tokenizer_mask_id not in (None, mask):
        raise InputFileError(
            "E-TOK",
            f"{settings.name}: the mask token of the tokenizer is id {settings.tokenizer_mask_id}, "
            f"mask_token_id of the config is {mask}",
            "correct whichever of the two is wrong",
        )
    pad, bos = _first(settings, "pad_token_id"), _first(settings, "bos_token_id")
    stops = [*eos, *(released.stops if released.eos in eos else ())]
    ids: dict[str, Any] = {
        "mask_id": released.mask if mask is None else mask,
        "eos_id": eos[0],
        "pad_id": pad if pad is not None else (released.pad if released.eos in eos else eos[0]),
        "bos_id": bos if bos is not None else (released.bos if released.eos in eos else None),
        "stop_ids": tuple(dict.fromkeys(stops)),
    }
    _check_ids(settings, ids, rows)
    return ids


def _check_ids(settings: Settings, ids: dict[str, Any], rows: int) -> None:
    for key in ("mask_id", "eos_id", "pad_id", "bos_id"):
        if ids[key] is not None and not 0 <= ids[key] < rows:
            raise InputFileError(
                "E-CONFIG",
                f"config.json of {settings.name}: {key} is {ids[key]}, the embedding has {rows} rows",
                f"add the right {key.replace('_id', '_token_id')} to config.json",
            )
    for stop in ids["stop_ids"]:
        if not 0 <= stop < rows or stop == ids["mask_id"]:
            raise InputFileError(
                "E-CONFIG",
                f"config.json of {settings.name}: stop id {stop} cannot be one "
                f"(mask id {ids['mask_id']}, {rows} embedding rows)",
                "correct eos_token_id in config.json and generation_config.json",
            )


def _first(settings: Settings, key: str) -> int | None:
    found = _listed(settings, key)
    return found[0] if found else None


def _listed(settings: Settings, key: str) -> list[int]:
    """The ids under `key` in config.json, then in generation_config.json; each may hold one or a list."""
    ids: list[int] = []
    for source in (settings.config, settings.beside):
        value = source.get(key)
        for one in value if isinstance(value, list) else [value]:
            if one is None:
                continue
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**31:
                raise settings.wrong(key, value, "a token id or a list of them")
            ids.append(one)
    return ids
