"""One look at every layer in full precision before the first is quantized: what each width would cost."""

from __future__ import annotations

from typing import Any

from dlm_edge.quant.layer_pass import run_stages
from dlm_edge.quant.layer_step import collect, weight_of
from dlm_edge.quant.mixed import Candidate, allocate, probe_linear
from dlm_edge.quant.plan import Plan
from dlm_edge.quant.recipes import Recipe
from dlm_edge.quant.source_weights import SourceWeights
from dlm_edge.quant.states import Batch


def allocate_bits(plan: Plan, recipe: Recipe, weights: SourceWeights, batches: list[Batch]) -> dict[str, Any]:
    """`bits` of every weight by tensor name, under the mean that the recipe asks for, and the relative output `errors` by
    which they were chosen, by tensor name and by bits (as text)."""
    hidden, candidates = [weights.embedded(b.ids) for b in batches], []
    for i in range(plan.spec.n_layers):
        layer, names = weights.layer(i), plan.names(i)
        for linears, inputs in run_stages(layer, plan.spec, batches, hidden):
            wanted = [linear for linear in linears if linear in names]
            if not wanted:
                continue
            statistics = collect(names[wanted[0]], weight_of(layer, wanted[0]).shape[1], batches, inputs)
            for linear in wanted:
                weight = weight_of(layer, linear)
                errors = probe_linear(names[linear], weight.numpy(), statistics, recipe.group_size, recipe.zero)
                rows, columns = weight.shape
                candidates.append(
                    Candidate(
                        name=names[linear],
                        shape=(rows, columns),
                        group_size=recipe.group_size,
                        zero=recipe.zero,
                        errors=errors,
                    )
                )
    # The mean is of codes: scales and zeros come on top, as they do where every layer has the same width.
    overhead = sum(c.stored_bits(4) - 4 * c.n_weights for c in candidates) / sum(c.n_weights for c in candidates)
    probed = {c.name: {str(bits): float(f"{error:.3g}") for bits, error in c.errors.items()} for c in candidates}
    return {"bits": allocate(candidates, recipe.bits + overhead), "errors": probed}
