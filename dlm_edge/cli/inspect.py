"""`dlm-edge inspect`: what a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dlm_edge.cli.output import print_json, progress_line, size, table


@click.command("inspect")
@click.argument("path")
@click.option("--outliers", is_flag=True, help="Run calibration states and show the outliers of every linear input.")
@click.option("--calib-data", type=click.Path(path_type=Path), help="Texts for --outliers (default: built in).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the states for --outliers.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Write the map of --outliers, an SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(path: str, outliers: bool, calib_data: Path | None, seed: int, plot: Path | None, as_json: bool) -> None:
    """Family, sizes and conventions of a checkpoint, a quantized checkpoint or a bundle; reads headers only,
    unless --outliers is given."""
    import msgspec

    from dlm_edge.errors import UsageProblem
    from dlm_edge.inspection import inspect_artefact, inspect_outliers

    for option, value in (("--calib-data", calib_data), ("--plot", plot)):
        if value is not None and not outliers:
            raise UsageProblem("E-USAGE", f"{option} is for --outliers", "add --outliers, or leave it out")
    found = inspect_artefact(path)
    if outliers:
        profiles = inspect_outliers(path, calib_data=calib_data, seed=seed, plot=plot, progress=progress_line)
        found = msgspec.structs.replace(found, outliers=profiles)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    dtypes = ", ".join(f"{count} {name}" for name, count in found.dtypes.items())
    print(f"{found.kind}: {found.family} ({found.architecture}), {found.parameters / 1e6:.1f} M parameters")
    print(f"size          {size(found.size_bytes)}" + (f" ({dtypes})" if dtypes else ""))
    if found.profile is not None and found.profile["name"]:
        print(f"profile       {found.profile['name']}{how_chosen(found.profile['measured'])}")
    print(f"cache         {found.cache_layout}, {size(round(found.cache_bytes_per_token))} per token")
    for key, value in found.conventions.items():
        print(f"{key:16}  {value}")
    if found.quantization is not None:
        q = found.quantization
        groups = f"groups of {q['group_size']}" if q["group_size"] else "one scale per output channel"
        print(f"quantization  {q['method']}, {q['bits'] or 0:g} bits, {groups}, {q['layers']} layers")
    if found.sampler_defaults is not None:
        print(f"defaults      {named(found.sampler_defaults)}")
    if found.tuned is not None:
        t = found.tuned
        print(
            f"tuned         {t['setting']}: agreement {t['agreement']:.3f} with static on {t['prompts']} prompts "
            f"({t['source']}), {t['speed_ratio']:.2f} times as fast, {t['date'][:10]}"
        )
    if found.outliers is not None:
        print(outlier_table(found.outliers))
    if plot is not None:
        print(f"plot          {plot}")


def named(defaults: dict[str, Any]) -> str:
    """Settings as flags have them, the sampler's own after its name."""
    own = defaults.get("sampler_options") or {}
    first = [defaults["sampler"]] if "sampler" in defaults else []
    rest = {name: value for name, value in defaults.items() if name not in ("sampler", "sampler_options")} | own
    return " ".join([*first, *(f"{name}={value}" for name, value in rest.items())]) or "those of the runtime"


def outlier_table(profiles: list[dict[str, Any]]) -> str:
    """Peaks and means in units of the input's typical magnitude; the strongest channel of a kind by its number."""
    rows = [["input", "channels", "peak ratio", "normal", "massive", "super", "above 6", "recipe w8a8"]]
    for p in profiles:
        rows.append(
            [
                f"{p['layer']} {' '.join(p['linears'])}",
                str(p["channels"]),
                f"{p['peak_ratio']:.3g}",
                _kind(p["normal_count"], p["normal"]),
                _kind(p["massive_count"], p["massive"]),
                "-" if p["super_outlier"] is None else _kind(1, [p["super_outlier"]]),
                f"{p['share_above']:.2%}",
                ", ".join(t.partition(" (")[0] if t.startswith("none") else t for t in p["treatments"]),
            ]
        )
    return table(rows)


def _kind(count: int, channels: list[dict[str, Any]]) -> str:
    if not count:
        return "-"
    strongest = channels[0]
    return f"{count} (#{strongest['channel']} x{strongest['peak']:.3g}, {strongest['share']:.0%})"


def how_chosen(measured: dict[str, Any] | None) -> str:
    """What `--profile auto` found on the machine that exported the bundle."""
    if measured is None:
        return ""
    times = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in measured["seconds"].items())
    return f", the fastest on {measured['processor']}: {times} for a feed-forward layer of {measured['rows']} rows"
