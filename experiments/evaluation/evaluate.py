"""Reports clean and robust accuracy of a trained checkpoint or published weights."""

from pathlib import Path
from typing import Any

from jaxadv import training
from jaxadv.checks import check_choice, check_count, check_eps, check_norm, check_step
from jaxadv.keys import as_key

from .. import data
from ..cli.options import check_writable
from ..reporting.write import write_page
from ..run import accuracy, build, environment, metrics
from ..run.directory import RunDirectory, write_json
from . import autoattack, published, subjects
from .subjects import Subject

ATTACKS = ("pgd", "autoattack")
VERSIONS = ("standard", "plus")
PRECISIONS = ("default", "high", "highest")
_PGD_OPTIONS = ("step_size", "num_steps", "num_restarts")


def evaluate(
    workdir: Path | str | None = None,
    *,
    torch: Path | str | None = None,
    arch: str | None = None,
    dataset: str | None = None,
    normalization: str | None = None,
    entry: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    model: str | None = None,
    weights: Path | str | None = None,
    threat: str | None = None,
    check_clean: bool = True,
    checkpoint: str = "selected",
    images: str = "test",
    number: int | None = None,
    attack: str = "pgd",
    version: str = "standard",
    precision: str = "default",
    shard: tuple[int, int] | None = None,
    norm: str | None = None,
    eps: float | None = None,
    step_size: float | None = None,
    num_steps: int | None = None,
    num_restarts: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    data_dir: Any = None,
    verbose: bool = True,
    save: bool | Path = False,
    on_metrics: metrics.OnMetrics | None = None,
) -> dict:
    """Evaluates one checkpoint with PGD or AutoAttack.

    Args:
        workdir: run directory, or None with ``torch``.
        torch: PyTorch weights file to evaluate instead; needs ``arch`` and ``dataset``.
        arch: "preact_resnet18" or "wrn34_10".
        dataset: name of the data set.
        normalization: name of the PyTorch network's image normalization; "none" for raw images in
        [0, 1].
        entry: entry of the PyTorch file that holds the weights, if it has several.
        mean: per-channel mean, instead of ``normalization``.
        std: per-channel standard deviation.
        model: id of one of RobustBench's models instead, see :mod:`jaxadv.models.zoo`; needs
        ``weights``. ``dataset`` and ``threat`` tell apart several of the same id.
        weights: its file or folder, see :func:`jaxadv.models.load`, or ``hf://OWNER/NAME/FILE``.
        threat: threat that it was trained for, "linf" or "l2".
        check_clean: whether a clean accuracy on the first 1,000 images that is not the published
        one raises before the attack, whatever ``number`` is.
        checkpoint: "selected" or "last".
        images: "test", "selection" or "train".
        number: use only the first images.
        attack: "pgd" or "autoattack".
        version: AutoAttack version, "standard" or "plus".
        precision: of AutoAttack's attacks, see :func:`jaxadv.attacks.autoattack`.
        shard: (i, n): only these of AutoAttack's images, see there; needs ``save``, which then
        keeps them for a call without a shard and writes nothing else.
        norm: norm of the ball; defaults to the run's, like all arguments below.
        eps: radius, images in [0, 1].
        step_size: PGD step size.
        num_steps: PGD steps.
        num_restarts: PGD restarts; the restart with the largest loss counts.
        batch_size: images per compiled call; does not affect the result.
        seed: seed of the attack's random numbers.
        data_dir: folder with the data sets.
        verbose: whether to show progress.
        save: whether to write the report, and AutoAttack's progress, images and figure, to the run
        directory (``runs/torch/NAME`` for a PyTorch file); or the path of the report.
        on_metrics: called at the end with the numbers of the report: "clean", "robust", for
        AutoAttack also "accuracy_apgd-ce", "seconds_apgd-ce" and the like; not for a shard.

    Returns:
        A JSON-serializable report; with ``save``, "files" lists the written paths.

    Raises:
        FileNotFoundError: if ``workdir`` is not a run directory.
        ValueError: if an option is invalid or the checkpoint does not match, or a model's clean
        accuracy is not the published one.
    """
    own = {"step_size": step_size, "num_steps": num_steps, "num_restarts": num_restarts}
    _check_attack(attack, version, precision, shard, own)
    if shard is not None and not save:
        raise ValueError(f"shard={shard} needs save=True or a path: where all shards are kept")
    if isinstance(save, Path):
        save = save.expanduser()
        check_writable(save)
    network = {
        "arch": arch, "dataset": dataset, "normalization": normalization, "entry": entry,
        "mean": mean, "std": std,
    }  # fmt: skip
    key = None if seed is None else as_key(seed, name="seed")
    if number is not None:
        check_count("number", number, 1)
    known = None
    if model is not None or weights is not None:
        _check_by_name(workdir, torch, network, model, weights, checkpoint, images)
        known = published.find(str(model), dataset, threat)
        subject = published.load(known, str(weights), part=entry, data_dir=data_dir)
        number = published.usual_number(known, len(subject.labels), number)
    else:
        if threat is not None:
            raise ValueError(f"threat={threat!r} applies only to --model; use --norm and --eps")
        subject = _subject(workdir, torch, network, checkpoint, images, data_dir)
    whole = subject
    if number is not None:
        subject = subject.first(number)
        number = len(subject.labels)  # file names use the actual number
    if key is not None:
        subject = subject._replace(key=key)
    if save and not isinstance(save, Path):
        check_writable(subject.folder / "report.json")
    ball = _threat(subject, norm, eps, step_size if attack == "pgd" else 0.0)
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    if attack == "pgd":
        name = f"evaluation-{checkpoint}-{images}" + ("" if number is None else f"-first{number}")
    else:
        name = _autoattack_name(subject, ball, version, seed, number, checkpoint, images, precision)
    path = save if isinstance(save, Path) else subject.folder / f"{name}.json"
    checked = {}
    if known is not None:
        if verbose:
            print(published.outlook(known, len(subject.labels)), flush=True)
        if check_clean:
            checked = {"check": published.check_clean(whole, known, batch_size=batch_size)}
            if verbose:
                print(published.agreement(checked["check"]), flush=True)
    if attack == "pgd":
        options = {n: subject.pgd[n] if own[n] is None else own[n] for n in _PGD_OPTIONS}
        found, details, result = _pgd(subject, ball | options, batch_size, verbose), options, None
    else:
        details = {"version": version, "precision": precision}
        store = path.with_suffix(".progress") if save else None
        found, result = autoattack.run_autoattack(
            subject, **ball, version=version, precision=precision, batch_size=batch_size,
            store=store, shard=shard, verbose=verbose,
        )  # fmt: skip
    report = {
        **subject.record,
        "attack": {"name": attack, **ball, **details},
        **found,
        **checked,
        "environment": environment.describe(),
    }
    if shard is not None:
        report["files"] = [str(path.with_suffix(".progress"))]
    elif save:
        path.parent.mkdir(parents=True, exist_ok=True)
        report["files"] = [str(path)]
        if result is not None:
            report["files"] += [str(file) for file in autoattack.save(result, subject, path)]
        write_json(path, report)
        if (
            known is not None
            and (attack, version) == ("autoattack", "standard")
            and published.is_published(ball, report["published"])
        ):
            report["files"].append(str(published.save_model_info(report, known, path.parent)))
        page = _renew_page(workdir, path, checkpoint, data_dir)
        report["files"] += [] if page is None else [str(page)]
    if on_metrics is not None and shard is None:
        on_metrics(metrics.numbers(found))
    return report


def _check_attack(attack: str, version: str, precision: str, shard, own: dict) -> None:
    """Raises a ``ValueError`` for unknown names, and for options of the other attack."""
    check_choice("attack", attack, ATTACKS)
    check_choice("version", version, VERSIONS)
    given = [name for name in _PGD_OPTIONS if own[name] is not None]
    if attack == "autoattack" and given:
        name = given[0]
        raise ValueError(
            f"{name}={own[name]} applies only to attack='pgd'; AutoAttack sets its own {name}"
        )
    if attack == "pgd" and (shard is not None or precision != "default"):
        name = "precision" if shard is None else "shard"
        raise ValueError(f"{name} applies only to attack='autoattack'; leave it out")


def _check_by_name(workdir, torch, network: dict, model, weights, checkpoint, images) -> None:
    """Raises a ``ValueError`` for what a model's name settles, or if something is missing."""
    if model is None or weights is None:
        given, lacking = ("weights", "--model=ID") if model is None else ("model", "--weights=FILE")
        value = weights if model is None else model
        raise ValueError(f"{given}={str(value)!r} needs {lacking} too")
    settled = {name: network[name] for name in ("arch", "normalization", "mean", "std")}
    for name, value in {"workdir": workdir, "torch": torch, **settled}.items():
        if value is not None:
            raise ValueError(f"--{name} can't be given with --model={model}, which settles it")
    if checkpoint != "selected" or images != "test":
        raise ValueError("--checkpoint and --images apply only to runs, not to --model")


def _renew_page(workdir, path: Path, checkpoint: str, data_dir) -> Path | None:
    """Rewrites the run's HTML report if it includes what was written."""
    if workdir is None:
        return None
    directory = RunDirectory(workdir)
    is_part = path.resolve() == directory.autoattack_file(checkpoint, partial=True)
    if not is_part or not directory.report_file.is_file():
        return None
    return write_page(directory, print, data_dir=data_dir)


def _subject(workdir, torch, network: dict, checkpoint, images, data_dir) -> Subject:
    if (workdir is None) == (torch is None):
        raise ValueError(
            "give one of a run (--workdir=DIR), a model by name (--model=ID --weights=FILE) and a "
            "weights file (--torch=FILE)"
        )
    if torch is None:
        for name, value in network.items():
            if value is not None:
                raise ValueError(
                    f"--{name} can only be given with --torch; a run directory already records it"
                )
        return subjects.from_run(workdir, checkpoint, images, data_dir)
    network = dict(network)
    arch, dataset = network.pop("arch"), network.pop("dataset")
    if arch is None or dataset is None:
        raise ValueError(
            f"torch={str(torch)!r} needs --arch ({', '.join(subjects.ARCHITECTURES)}) and "
            f"--dataset ({', '.join(data.NAMES)})"
        )
    if checkpoint != "selected" or images != "test":
        raise ValueError("--checkpoint and --images apply only to runs, not to PyTorch files")
    return subjects.from_torch(torch, arch, dataset, **network, data_dir=data_dir)


def _threat(subject: Subject, norm, eps, step_size) -> dict[str, Any]:
    chosen: Any = subject.norm if norm is None else norm
    check_norm(chosen)
    if (chosen != subject.norm and None in (eps, step_size)) or (eps is None is subject.eps):
        step = "" if step_size is not None else " and --step-size"
        raise ValueError(
            f"norm={chosen!r} differs from the run's ({subject.norm!r}), so its eps and step_size "
            f"do not apply; give --eps{step} too"
        )
    radius: Any = subject.eps if eps is None else eps
    check_eps(radius, chosen, num_features=subject.images[0].size)
    return {"norm": chosen, "eps": radius}


def _pgd(subject: Subject, attack: dict, batch_size: int | None, verbose: bool) -> dict:
    check_count("num_steps", attack["num_steps"], 0)
    check_count("num_restarts", attack["num_restarts"], 1)
    check_step(attack["step_size"])
    predictions = accuracy.predict_all(
        training.make_predict(build.make_apply(subject.module), **attack),
        subject.params,
        subject.batch_stats,
        subject.key,
        subject.images,
        subject.labels,
        batch_size=subject.batch_size if batch_size is None else batch_size,
        description="evaluating" if verbose else None,
    )
    return accuracy.summarize(predictions, subject.labels, subject.class_names)


def _autoattack_name(
    subject, threat, version, seed, number, checkpoint, images, precision="default"
) -> str:
    """The default evaluation gets the short name that run directories look for."""
    name = f"autoattack-{checkpoint}-{images}"
    if threat != {"norm": subject.norm, "eps": subject.eps}:
        name += f"-{threat['norm']}-{threat['eps']:.5g}"
    name += "" if version == "standard" else f"-{version}"
    name += "" if precision == "default" else f"-{precision}"
    name += "" if seed is None else f"-seed{seed}"
    return name + ("" if number is None else f"-first{number}")


def describe(report: dict) -> str:
    """The report as a table, with 95 % intervals."""
    attack = report["attack"]
    name, settings = "AutoAttack", attack.get("version", "")
    if attack["name"] == "pgd":
        name = f"PGD-{attack['num_steps']}"
        restarts = f", {attack['num_restarts']} restarts" if attack["num_restarts"] > 1 else ""
        settings = f"step {attack['step_size']:.5g}{restarts}"
    whose = f"{report['method']}, scale {report['scale']}" if "method" in report else report["arch"]
    lines = [
        f"Accuracy in % and its 95 % interval on {report['images']} {report['evaluated_on']} "
        f"images of {report['dataset']}, {report.get('model', whose)}",
        f"{name}: {attack['norm']}, eps {attack['eps']:.5g}, {settings}, {report['precision']}",
        accuracy.format_table({f"{report['checkpoint']} checkpoint": report}, name),
    ]
    lines += [
        f"after {part:<12} {accuracy.with_interval(value, report['images']):>21}"
        for part, value in report.get("accuracy", {}).items()
    ]
    if attack["name"] == "autoattack" and "published" in report:
        lines.append(published.compare(report))
    return "\n".join(lines)
