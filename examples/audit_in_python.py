"""Attach a probe to a model, run structures, and look at the errors and the arrays behind them.

Run it as ``python examples/audit_in_python.py [MODEL] [STRUCTURES]``.
"""

import sys

import precision_probe as pp


def main(model: str = "demo", structures: str = "demo") -> None:
    """Print where float16 loses digits, and how much of it in each irrep of the first message."""
    with pp.attach(model, precisions=["float32", "float16"]) as probe:
        probe.run(structures)
    trace = probe.trace()

    print(pp.summary(trace).round(6).to_string())

    errors = pp.errors(trace)
    own = errors.query("precision == 'float16' and mode == 'isolated' and direction == 'forward'")
    print(own.sort_values("rel_l2", ascending=False)[["block", "tensor", "rel_l2", "amplification"]].to_string())

    reference = trace.group("propagated", "float64")["interactions.0.message"]
    variant = trace.group("propagated", "float16")["interactions.0.message"]
    component = "interactions.0.component"
    for irrep in dict.fromkeys(reference[component].values):
        y, y_hat = reference.sel({component: irrep}), variant.sel({component: irrep})
        rel_l2 = float(((y_hat - y) ** 2).sum() ** 0.5 / (y**2).sum() ** 0.5)
        print(f"interactions.0.message, irrep {irrep}: rel_l2 {rel_l2:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
