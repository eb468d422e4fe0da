"""Clean and robust accuracy of a trained checkpoint, as a table and as JSON.

    python -m experiments.evaluate --workdir=runs/digits-laptop/at/seed0 --num-steps=50

Every option that is not given is that of the run's own configuration.
"""

import argparse
from pathlib import Path
from typing import Any

import jax

from jaxadv import training
from jaxadv._checks import (
    NORMS,
    check_choice,
    check_count,
    check_eps,
    check_norm,
    check_step,
)

from . import build, checkpoints, cli, environment, evaluation
from .runs import RunDirectory, write_json

CHECKPOINTS = ("selected", "last")
IMAGES = ("test", "selection", "train")


def evaluate(
    workdir: Path | str,
    *,
    checkpoint: str = "selected",
    images: str = "test",
    norm: str | None = None,
    eps: float | None = None,
    step_size: float | None = None,
    num_steps: int | None = None,
    num_restarts: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    data_dir: Any = None,
    verbose: bool = True,
) -> dict:
    """Evaluates one checkpoint of a run with PGD.

    Args:
        workdir: run directory.
        checkpoint: "selected" or "last".
        images: "test", "selection" or "train".
        norm: norm of the ball; default that of the run, like all that follows.
        eps: radius, images in [0, 1].
        step_size: step of the attack.
        num_steps: its steps.
        num_restarts: its restarts; a restart counts if its largest loss does.
        batch_size: images a compiled call; does not change the result.
        seed: seed of the attack's random starts.
        data_dir: where data sets are looked for.
        verbose: whether to show a progress bar.

    Returns:
        A JSON-able report.

    Raises:
        FileNotFoundError: if ``workdir`` is no run directory.
        ValueError: if an option makes no sense or the checkpoint does not fit.
    """
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    check_choice("images", images, IMAGES)
    directory = RunDirectory(workdir)
    config = directory.config()
    attack_norm: Any = config.threat.norm if norm is None else norm
    check_norm(attack_norm)
    if attack_norm != config.threat.norm and None in (eps, step_size):
        raise ValueError(
            f"norm={attack_norm!r} is not the run's own ({config.threat.norm!r}), whose eps and "
            "step_size mean nothing for it; give --eps and --step-size too"
        )
    attack: dict[str, Any] = {
        "norm": attack_norm,
        "eps": config.threat.eps if eps is None else eps,
        "step_size": config.eval.step_size if step_size is None else step_size,
        "num_steps": config.eval.num_steps if num_steps is None else num_steps,
        "num_restarts": config.eval.num_restarts if num_restarts is None else num_restarts,
    }
    check_count("num_steps", attack["num_steps"], 0)
    check_count("num_restarts", attack["num_restarts"], 1)
    check_step(attack["step_size"])
    images_a_call: int = config.eval.batch_size if batch_size is None else batch_size
    check_count("batch_size", images_a_call, 1)
    task = build.load_task(config, data_dir)
    check_eps(attack["eps"], attack_norm, task.test.images[0].size)
    apply_fn = build.make_apply(module := build.build_model(config, task.dataset))
    templates = jax.eval_shape(
        lambda: build.init_variables(module, jax.random.key(0), task.dataset.image_shape)
    )
    path = directory.path / f"{checkpoint}.ckpt"
    params, batch_stats = checkpoints.load_part(path, ("params", "batch_stats"), templates)
    chosen = getattr(task, images)
    predictions = evaluation.predict_all(
        training.make_predict(apply_fn, **attack),
        params,
        batch_stats,
        build.test_key(config) if seed is None else jax.random.key(seed),
        *chosen,
        batch_size=images_a_call,
        description="evaluating" if verbose else None,
    )
    return {
        "workdir": str(workdir),
        "method": config.method,
        "dataset": config.dataset,
        "scale": config.scale,
        "checkpoint": checkpoint,
        "evaluated_on": images,
        "attack": attack,
        "precision": config.precision,
        **evaluation.summarize(predictions, chosen.labels, task.dataset.class_names),
        "environment": environment.describe(),
    }


def describe(report: dict) -> str:
    """The report as a table."""
    attack = report["attack"]
    name = f"PGD-{attack['num_steps']}"
    title = f"{report['checkpoint']} checkpoint"
    restarts = f", {attack['num_restarts']} restarts" if attack["num_restarts"] > 1 else ""
    return (
        f"Accuracy in % on {report['images']} {report['evaluated_on']} images of "
        f"{report['dataset']}, {report['method']}, scale {report['scale']}\n"
        f"{name}: {attack['norm']}, eps {attack['eps']:.5g}, step {attack['step_size']:.5g}"
        f"{restarts}, {report['precision']}\n" + evaluation.format_table({title: report}, name)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate",
        description="Clean and PGD accuracy of a trained checkpoint, overall and by class. "
        "Options that are not given are those of the run.",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="run directory")
    parser.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        default="selected",
        help="the best on the selection images (default) or the last",
    )
    parser.add_argument("--images", choices=IMAGES, default="test", help="default test")
    parser.add_argument("--norm", choices=NORMS, help="norm of the ball")
    parser.add_argument("--eps", type=_fraction, help="radius, for example 8/255")
    parser.add_argument("--step-size", type=_fraction, help="step, for example 2/255")
    parser.add_argument("--num-steps", type=int, help="steps of PGD")
    parser.add_argument("--num-restarts", type=int, help="random starts an image")
    parser.add_argument("--batch-size", type=int, help="images a call; no effect on the result")
    parser.add_argument("--seed", type=int, help="seed of the attack's random starts")
    parser.add_argument("--data-dir", help="folder of the data sets")
    parser.add_argument("--output", type=Path, help="JSON file; default in the run directory")
    return parser


def _fraction(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or a fraction") from None


def main() -> None:
    """The command line."""
    options = vars(_parser().parse_args())
    output = options.pop("output")

    def run():
        report = evaluate(**options)
        print(describe(report))
        name = f"evaluation-{report['checkpoint']}-{report['evaluated_on']}.json"
        path = output or Path(options["workdir"]) / name
        write_json(path, report)
        print(f"written to {path}")

    cli.execute(run)


if __name__ == "__main__":
    main()
