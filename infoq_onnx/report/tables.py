"""Rich tables of every result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from infoq_onnx.schema import counted

if TYPE_CHECKING:
    from infoq_onnx.schema import (
        Analysis,
        Analyzed,
        Compressed,
        CriterionInfo,
        DemoRow,
        Evaluation,
        Finetuned,
        Kernel,
        Network,
        Plan,
        ScoreTable,
        Unit,
        Verification,
    )

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

_RAW, _POOLED = ("kl", "infoq"), ("kl-pooled", "infoq-pooled")


def count(value: float) -> str:
    """Format a large number with a metric prefix and four digits."""
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value:.4g}"


def size(value: float) -> str:
    """Format bytes with a decimal prefix."""
    return f"{count(value)}B" if value >= 1e3 else f"{value:.0f} B"


def percent(value: float | None) -> str:
    """Format a share of 1; a dash for None."""
    return "–" if value is None else f"{100 * value:.2f} %"


def shape(dims: Sequence[int]) -> str:
    """Format a shape."""
    return "×".join(map(str, dims)) or "–"


def duration(seconds: float) -> str:
    """Format a span of time in two units at most."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def plan(found: Plan) -> str:
    """Describe the estimated cost of an analysis."""
    more = f" (at most {found.most_images:,}, if noise requires it)" if found.most_images > found.images else ""
    return (
        f"{found.trials:,} trials on {found.images:,} images{more}: as much as {found.passes:,.0f} whole passes, "
        f"{found.images_a_second:,.0f} images/s in a probe\n"
        f"about {duration(found.seconds)} ({duration(found.ranges_seconds)} for ranges, "
        f"{duration(found.rounding_seconds)} for rounding, {duration(found.trials_seconds)} for trials) and "
        f"{size(found.bytes)} of memory, with {found.workers} worker{'s' if found.workers > 1 else ''}"
    )


def network(found: Network) -> list[Table]:
    """Build the tables of a network: its layers with totals, and the skipped nodes if there are any."""
    table = Table(title=f"{len(found.layers)} layers, {len(found.groups)} activation groups, opset {found.opset}")
    for name, justify in (
        ("layer", "left"),
        ("operator", "left"),
        ("weight", "right"),
        ("output", "right"),
        ("parameters", "right"),
        ("MACs", "right"),
        ("activation group", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for layer in found.layers:
        table.add_row(
            layer.name,
            layer.op_type,
            shape(layer.weight_shape),
            shape(layer.output_shape),
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            ", ".join(layer.groups),
        )
    table.add_section()
    parameters, macs = sum(x.parameters for x in found.layers), sum(x.macs for x in found.layers)
    table.add_row("total", "", "", "", f"{parameters:,}", f"{macs:,}", f"BitOps at 8/8: {count(64 * macs)}")
    if not found.skipped:
        return [table]
    skipped = Table(title="left in float")
    for name in ("node", "operator", "reason"):
        skipped.add_column(name, overflow="fold")
    for node in found.skipped:
        skipped.add_row(node.name, node.op_type, node.reason)
    return [table, skipped]


def analysis(found: Analyzed) -> list[Table]:
    """Build the tables of an analysis: the candidate observers of criteria that select observers, and the scores.

    Pooled scores are for few bit-widths and images, and the others for all of them; the ones that do not fit are left
    out.
    """
    hidden = _POOLED if found.analysis.settings.effort == "full" else _RAW
    scores = [found.scores[name] for name in sorted(found.scores) if name not in hidden]
    selections = [observers(table) for table in scores if table.observers]
    return [*selections, *(score_table(found.analysis, table) for table in scores)]


def observers(table: ScoreTable) -> Table:
    """Build the table of the candidate observers of a criterion."""
    shown = Table(title="candidate observers: correlation of |ΔSMI| with the top-1 drop of low-bit trials")
    shown.add_column("tensor", overflow="fold")
    for name in ("r of (X;L)", "r of (L;Y)", "trials"):
        shown.add_column(name, justify="right")
    shown.add_column("kept for")
    shown.add_column("reason")
    for observer in table.observers:
        kept = [name for name, on in (("X", observer.selected_xl), ("Y", observer.selected_ly)) if on]
        shown.add_row(
            observer.tensor,
            _correlation(observer.correlation_xl),
            _correlation(observer.correlation_ly),
            str(observer.trials),
            ", ".join(kept) or "–",
            observer.reason,
        )
    return shown


def criterion_line(found: Analyzed) -> str:
    """Explain which criterion `allocate` uses by default, and why."""
    text = (
        f"allocate goes by {found.analysis.default_criterion}, how far predictions diverge: bits that it chose kept "
        "more than InfoQ's on the networks we measured"
    )
    if found.analysis.settings.observing == "none":
        return f"{text}; analyze --effort full measures those too, as published"
    if "infoq" not in found.scores or not found.scores["infoq"].scores:
        return f"{text}; here no observer tells enough for InfoQ's scores"
    noisy = found.analysis.calibration.targets == "groups"
    few = "; few images share a class here, which makes those noisy" if noisy else ""
    how = "as published" if found.analysis.settings.effort == "full" else "of few trials"
    return f"{text}{few}; --criterion infoq takes InfoQ's, {how}"


def score_table(found: Analysis, scores: ScoreTable) -> Table:
    """Build the table of the scores by one criterion."""
    bits = [b for b in found.settings.bits if b != max(found.settings.bits)]
    options = ", ".join(f"{name} {value}" for name, value in sorted(scores.options.items()))
    told = f" ({options})" if options else ""
    table = Table(title=f"scores by {scores.criterion}{told}: higher is more sensitive")
    table.add_column("unit", overflow="fold")
    table.add_column("of")
    for b in bits:
        table.add_column(f"{b} bits", justify="right")
    rows: dict[Unit, dict[int, float]] = {}
    for score in scores.scores:
        rows.setdefault(score.unit, {})[score.bits] = score.value
    for unit, values in rows.items():
        table.add_row(unit.name, unit.kind, *(f"{values[b]:.3g}" if b in values else "–" for b in bits))
    return table


def criteria(found: Iterable[CriterionInfo]) -> Table:
    """Build the table of all criteria."""
    table = Table(title="criteria")
    for name in ("name", "scores", "needs", "passes over the images", "options", "source"):
        table.add_column(name, overflow="fold")
    for one in found:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in one.options) or "–"
        table.add_row(one.name, one.summary, ", ".join(one.needs), one.passes, options, one.source)
    return table


def _correlation(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def allocation(result: Compressed) -> Table:
    """Build the table of the layers with their bits."""
    given = result.allocation
    table = Table(title="bits")
    table.add_column("layer", overflow="fold")
    for name in ("parameters", "MACs", "weight bits", "activation bits"):
        table.add_column(name, justify="right")
    for layer in result.network.layers:
        weight = given.weight_bits.get(layer.name)
        table.add_row(
            layer.name,
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            "–" if weight is None else str(weight),
            " · ".join(str(given.activation_bits[group]) for group in layer.groups),
        )
    return table


def totals(result: Compressed) -> Table:
    """Build the table of the costs before and after quantization."""
    before, after = result.before, result.allocation.costs
    bits = f"bits by criterion {result.allocation.criterion}" if result.allocation.bounds else "uniform bits"
    table = Table(title=f"totals ({bits})")
    table.add_column("")
    table.add_column("float", justify="right")
    table.add_column("quantized", justify="right")
    table.add_row("BitOps an image", count(before.bitops), count(after.bitops))
    table.add_row("weights", size(before.weight_bytes), size(after.weight_bytes))
    table.add_row("compression of weights", "1×", f"{after.compression:.2f}×")
    table.add_row("mean weight bits", "32", f"{after.avg_weight_bits:.3f}")
    table.add_row("mean activation bits", "32", f"{after.avg_act_bits:.3f}")
    table.add_row("file", size(result.float_file_bytes), size(result.file_bytes))
    return table


def kernels(found: Sequence[Kernel]) -> Table:
    """Build the table of the kernels that run for the layers of a model."""
    table = Table(title="what onnxruntime runs")
    for name in ("layer", "operator", "runs as", "saturates on", "why in float"):
        table.add_column(name, overflow="fold")
    for kernel in found:
        saturates = "x86 without VNNI" if kernel.saturates else ""
        table.add_row(kernel.layer, kernel.op_type, kernel.runs, saturates, kernel.reason)
    return table


def kernels_line(found: Sequence[Kernel]) -> str:
    """State in one line how many layers run as integer kernels, and name the first layer that does not."""
    if not found:
        return "the model has no convolution and no matrix product"
    left = [kernel for kernel in found if not kernel.integer]
    text = f"{len(found) - len(left)} of {len(found)} layers run as integer kernels"
    text = f"{text}; {left[0].layer} does not: {left[0].reason}" if left else text
    if saturating := sum(kernel.saturates for kernel in found):
        text += (
            f"; {saturating} of them may saturate on x86 processors without VNNI, and compute something else there: "
            "8-bit weights need activations or weights of 7 bits"
        )
    return text


def training(result: Finetuned) -> Table:
    """Build the table of a training: held-out images before and after."""
    done = result.compressed.allocation.training
    assert done is not None
    before, after = done.before, done.after
    what = f"{done.steps:,} {counted(done.mode)} on {done.images:,} images"
    table = Table(title=f"{what} ({done.mode}), {duration(result.seconds)}")
    table.add_column(f"on {before.images:,} held-out images")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("divergence from float", f"{before.divergence:.4f}", f"{after.divergence:.4f}")
    table.add_row("agreement with float", percent(before.agreement), percent(after.agreement))
    table.add_row("top-1", percent(before.accuracy), percent(after.accuracy))
    return table


def verification_line(checked: Verification) -> str:
    """State in one line how well a file matches its simulation."""
    kernels = ", with emulated kernels (this processor's saturate)" if checked.emulated else ""
    return (
        f"checked on {checked.images} calibration images against the simulation: largest logit difference "
        f"{checked.max_difference:.3g} ({100 * checked.relative_rms:.2g} % of the logits' spread in the mean), "
        f"top-1 agreement {100 * checked.agreement:.1f} %{kernels}"
    )


def evaluation(found: Evaluation, model: str, against: object) -> Table:
    """Build the table of an evaluation, with a column for the reference if there is one.

    Parameters
    ----------
    found : the evaluation
    model : title of the model's column
    against : title of the reference's column; None without a reference
    """
    table = Table(title=f"{found.images} images")
    table.add_column("")
    table.add_column(model, justify="right", overflow="fold")
    if against is not None:
        table.add_column(str(against), justify="right", overflow="fold")
        table.add_column("difference", justify="right")

    def row(name: str, value: str, reference: str = "", difference: str = "") -> None:
        table.add_row(*([name, value, reference, difference] if against is not None else [name, value]))

    interval = found.top1_interval
    low_high = "" if interval is None else f" [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"
    gap = found.top1_difference_interval
    gap_text = "" if gap is None else f" [{100 * gap[0]:+.2f}, {100 * gap[1]:+.2f}]"
    change = "" if found.top1_difference is None else f"{100 * found.top1_difference:+.2f}{gap_text}"
    row("top-1, % [95 %]", f"{percent(found.top1)}{low_high}", percent(found.reference_top1), change)
    row("top-5", percent(found.top5))
    if against is not None:
        row("same top-1 class", percent(found.agreement))
    reference_bytes = found.reference_bytes
    ratio = "" if reference_bytes is None else f"{found.file_bytes / reference_bytes:.2f}×"
    row("file", size(found.file_bytes), "" if reference_bytes is None else size(reference_bytes), ratio)
    latency, batch = found.reference_latency_ms, found.reference_latency_batch
    if latency is None or batch is None:
        row(f"median latency, batch {found.latency_batch}", f"{found.latency_ms:.2f} ms")
    elif batch == found.latency_batch:
        ratio = f"{found.latency_ms / latency:.2f}×"
        row(f"median latency, batch {batch}", f"{found.latency_ms:.2f} ms", f"{latency:.2f} ms", ratio)
    else:
        name = f"median latency, batch {found.latency_batch} and {batch}"
        row(name, f"{found.latency_ms:.2f} ms", f"{latency:.2f} ms", "other batches")
    return table


def demo(rows: Sequence[DemoRow]) -> Table:
    """Build the final table of the demo: float, uniform and mixed bits."""
    table = Table(title="handwritten digits, test images that calibration has not seen")
    for name in ("model", "weight / activation bits", "top-1", "95 % interval", "BitOps an image", "weights", "file"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        interval = row.evaluation.top1_interval or (0.0, 1.0)
        table.add_row(
            row.name,
            f"{row.costs.avg_weight_bits:.3g} / {row.costs.avg_act_bits:.3g}",
            percent(row.evaluation.top1),
            f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}",
            count(row.costs.bitops),
            size(row.costs.weight_bytes),
            size(row.evaluation.file_bytes),
        )
    return table
