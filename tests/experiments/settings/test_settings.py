"""The resolved fields of every method, data set and scale, and the values that are refused."""

import json

import pytest

from experiments import settings
from experiments.run.task import load_task
from tests.helpers.tiny_runs import AT_METHODS, CONFIGS, load

SCALED = [(scale, name) for name, scales in settings.DEFAULTS.items() for scale in scales]

# formulas F.2, the set-up of the paper on CIFAR-10.
PAPER = {
    "model": "preact_resnet18",
    "width": None,
    "precision": "float32",
    "num_epochs": 200,
    "batch_size": 128,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "lr_drops": (0.5, 0.75),
    "lr_factor": 0.1,
    "augment": "reflect_crop_flip",
    "train_size": None,
    "test_size": None,
    "threat.norm": "linf",
    "threat.eps": 8 / 255,
    "threat.step_size": 2 / 255,
    "threat.num_steps": 10,
    "eval.eps": 8 / 255,
    "eval.step_size": 2 / 255,
    "eval.num_steps": 20,
    "eval.num_restarts": 1,
    "eval.every": 1,
    "bn.attack": "train",
    "bn.attack_updates_stats": True,
    "bn.clean_pass": True,
    "bn.slow_weights": "refresh",
    "bn.refresh_batches": 100,
    "selection": "validation",
    "selection_size": 1000,
    # formulas D.6, column "default recommended"; the paper's n_in for PreActResNet-18.
    "entropy.n_in": 20,
    "entropy.gamma": 0.03,
    "entropy.noise": 1e-4,
    "entropy.inner_learning_rate": 0.1,
    "entropy.new_weight": 0.25,
    "entropy.momentum": 0.9,
    "entropy.inner_momentum": 0.9,
    "entropy.weight_decay": 5e-4,
}
LAPTOP = {
    "cifar10": {
        "width": 16,
        "threat.eps": 8 / 255,
        "threat.num_steps": 10,
        "eval.num_steps": 20,
        "model": "preact_resnet18",
    },
    "digits": {
        "model": "small_convnet",
        "train_size": None,
        "test_size": None,
        "threat.num_steps": 10,
        "eval.num_steps": 20,
        "augment": "none",
    },
}
OPTIMIZERS = {
    "at": {"optimizer": "sgd", "entropy.second_order": False},
    "at_ensgd": {"optimizer": "entropy_sgd", "entropy.second_order": False},
    "at_2nd_ensgd": {"optimizer": "entropy_sgd", "entropy.second_order": True},
}


def test_an_unknown_scale_is_refused():
    config = settings.base()
    config.scale = "huge"
    with pytest.raises(
        ValueError, match=r"config.scale \(of digits\)='huge' is not one of 'paper'"
    ):
        settings.resolve(config, "digits")


def test_the_threat_on_digits():
    found = values(settings.load_config("at", "laptop", "digits"))
    eps, step_size = settings.THREATS["digits"]["linf"]
    assert (found["threat.eps"], found["threat.step_size"]) == (eps, step_size)
    assert found["eval.step_size"] == step_size
    # A PGD that can cross the ball, and a ball that leaves images recognisable.
    assert found["threat.num_steps"] * step_size > 2 * eps * 0.5 and 0.1 <= eps <= 0.3


def resolve(method="at", scale="paper", dataset="digits", **overrides):
    """Overrides are dotted names with "__" for the dot."""
    config = load(method, scale, dataset)
    fresh = settings.base(scale)
    fresh.method, fresh.optimizer = config.method, config.optimizer
    fresh.entropy.second_order = config.entropy.second_order
    fresh.unlock()
    for name, value in overrides.items():
        *path, leaf = name.split("__")
        section = fresh[path[0]] if path else fresh
        section[leaf] = value
    return settings.resolve(fresh, dataset)


def values(config):
    return dict(settings.flatten(config))


@pytest.mark.parametrize("method", AT_METHODS)
def test_the_paper_scale_on_cifar10_is_the_papers_setup(method):
    found = values(settings.load_config(method, "paper", "cifar10"))
    expected = PAPER | OPTIMIZERS[method] | {"method": method, "scale": "paper", "seed": 0}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("method", AT_METHODS)
@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_the_laptop_scale(method, dataset):
    found = values(settings.load_config(method, "laptop", dataset))
    expected = LAPTOP[dataset] | OPTIMIZERS[method]
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("dataset", sorted(settings.DEFAULTS))
def test_scales_shrink(dataset):
    scales = ("paper", "laptop", "smoke")
    paper, laptop, smoke = (settings.load_config("at", scale, dataset) for scale in scales)
    assert smoke.num_epochs < laptop.num_epochs <= paper.num_epochs
    assert paper.train_size is None and smoke.train_size <= (laptop.train_size or 10**9)
    assert laptop.num_epochs * (laptop.train_size or 1300) < 10**6


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("scale, dataset", SCALED)
def test_every_field_is_filled_and_json_able(method, dataset, scale):
    config = settings.load_config(method, scale, dataset)
    open_fields = {name for name, value in values(config).items() if value is None}
    allowed = {"width", "train_size", "test_size", "entropy.preset", "trades.preset"}
    assert open_fields <= allowed
    restored = json.loads(json.dumps(config.to_dict()))
    assert restored["threat"]["eps"] == config.threat.eps
    assert config.dataset == dataset and config.scale == scale and config.method == method


@pytest.mark.parametrize("scale, dataset", SCALED)
def test_methods_differ_in_their_optimizer_alone(dataset, scale):
    """The comparison is fair: what is not the method is the same in every column."""
    at, ensgd, second = (values(settings.load_config(m, scale, dataset)) for m in AT_METHODS)
    assert {n for n in at if at[n] != ensgd[n]} == {"method", "optimizer"}
    assert {n for n in ensgd if ensgd[n] != second[n]} == {"method", "entropy.second_order"}


@pytest.mark.parametrize("dataset", ["digits", "imagenet"])
def test_the_scale_cpu_is_of_the_small_sets_that_need_it(dataset):
    config = settings.load_config("at", "cpu", "cifar10")
    assert (config.model, config.train_size, config.test_size) == ("cifar_convnet", None, None)
    with pytest.raises(ValueError, match=rf"config.scale \(of {dataset}\)='cpu' is not one of"):
        settings.load_config("at", "cpu", dataset)


def test_a_field_of_a_section_is_set_by_its_dotted_name():
    config = settings.load_config("at_ensgd", "smoke", "digits", **{"entropy.n_in": 5})
    assert config.entropy.n_in == 5
    with pytest.raises(ValueError, match="unknown field 'entropy.n_inn'.*entropy.n_in"):
        settings.load_config("at_ensgd", "smoke", "digits", **{"entropy.n_inn": 5})


@pytest.mark.parametrize("dataset", sorted(settings.DEFAULTS))
def test_the_smoke_scale_is_small(dataset):
    config = settings.load_config("at_ensgd", "smoke", dataset)
    assert config.num_epochs * config.train_size <= 256
    assert config.entropy.n_in < config.train_size // config.batch_size


def test_wide_resnet_has_its_own_inner_iterations():
    assert resolve("at_ensgd", dataset="cifar10", model="wrn34_10").entropy.n_in == 30
    assert (
        resolve("at_ensgd", dataset="cifar10", model="wrn34_10", entropy__n_in=7).entropy.n_in == 7
    )


def test_the_alpha_of_the_paper_can_be_read_both_ways():
    """Erratum E28: weight of the old average in the code, of the new iterate in Algorithm 1."""
    found = lambda **fields: resolve("at_ensgd", **fields).entropy
    assert (found().alpha, found().new_weight) == (0.75, 0.25)
    assert found(entropy__alpha_weighs="new").alpha == found().new_weight
    assert found(entropy__alpha=0.3).new_weight == pytest.approx(0.7)
    assert found(entropy__alpha=0.3, entropy__alpha_weighs="new").new_weight == 0.3
    assert found(entropy__new_weight=0.4).alpha == pytest.approx(0.6)
    assert found(entropy__preset="paper_fixed").alpha == 0.25
    assert found(entropy__alpha=0.3, entropy__new_weight=0.7).new_weight == 0.7


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0.031, 0.003, 8 / 255, 2 / 255)),
        (dict(trades__preset="awp"), (8 / 255, 2 / 255, 8 / 255, 2 / 255)),
        (dict(threat__eps=0.02), (0.02, 0.003, 0.02, 2 / 255)),
        (dict(threat__norm="l2"), (128 / 255, 2 * 128 / 2550, 128 / 255, 15 / 255)),
    ],
    ids=["paper", "awp", "own radius", "l2"],
)
def test_the_attack_of_trades(fields, expected):
    """Trained on with the preset's radius, evaluated at that of everything else."""
    config = resolve("trades", dataset="cifar10", objective="trades", **fields)
    found = (config.threat.eps, config.threat.step_size, config.eval.eps, config.eval.step_size)
    assert found == pytest.approx(expected, rel=1e-12)


def test_warm_up_is_in_proportion_where_the_run_is_shorter():
    warm = lambda **fields: (
        resolve(objective="trades", awp__enabled=True, scale="laptop", **fields).warmup_epochs
    )
    assert (warm(), warm(num_epochs=200), warm(num_epochs=4), warm(warmup_epochs=7)) == (
        3,
        10,
        0,
        7,
    )


def test_a_width_belongs_to_its_architecture():
    assert resolve(scale="laptop", dataset="cifar10").width == 16
    assert resolve(scale="laptop", dataset="cifar10", model="wrn34_10").width is None
    assert resolve(scale="laptop", dataset="cifar10", model="wrn34_10", width=1).width == 1


def test_the_l2_threat_has_its_own_radius():
    config = resolve(dataset="cifar10", threat__norm="l2")
    assert (config.threat.eps, config.threat.step_size) == (128 / 255, 15 / 255)
    assert config.eval.step_size == 15 / 255
    assert (config.threat.num_steps, config.eval.num_steps) == (10, 20)


def test_l1_needs_a_radius():
    with pytest.raises(ValueError, match="no default for norm 'l1' on cifar10; give --config.thr"):
        resolve(dataset="cifar10", threat__norm="l1")
    config = resolve(dataset="cifar10", threat__norm="l1", threat__eps=12.0, threat__step_size=1.0)
    assert config.eval.step_size == 1.0


def test_what_was_set_stays():
    given = dict(
        batch_size=7, learning_rate=0.3, threat__eps=0.25, entropy__n_in=3, bn__clean_pass=False
    )
    found = values(resolve("at_ensgd", **given))
    for name, value in given.items():
        assert found[name.replace("__", ".")] == value


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (None, {"momentum": 0.9, "weight_decay": 5e-4, "new_weight": 0.25}),
        ("ucla_exact", {"momentum": 0.9, "inner_momentum": 0.9, "weight_decay": 5e-4}),
        ("lua", {"momentum": 0.0, "inner_momentum": 0.9, "weight_decay": 0.0}),
        ("paper_literal", {"momentum": 0.0, "inner_momentum": 0.0, "new_weight": 0.75}),
        ("paper_fixed", {"momentum": 0.0, "weight_decay": 0.0, "new_weight": 0.75}),
        ("theory", {"momentum": 0.0, "noise": 1.0, "gamma": 0.03}),
    ],
)
def test_presets_fill_the_entropy_section(preset, expected):
    entropy = resolve("at_ensgd", entropy__preset=preset).entropy
    assert {name: entropy[name] for name in expected} == expected


def test_an_explicit_field_wins_over_its_preset():
    config = resolve("at_ensgd", entropy__preset="paper_fixed", entropy__new_weight=0.3)
    assert config.entropy.new_weight == 0.3 and config.entropy.momentum == 0.0


def test_entropy_follows_the_runs_momentum_and_decay():
    entropy = resolve("at_ensgd", momentum=0.8, weight_decay=1e-3).entropy
    assert (entropy.momentum, entropy.inner_momentum, entropy.weight_decay) == (0.8, 0.8, 1e-3)


def test_resolve_leaves_its_argument_alone():
    config = settings.base("laptop")
    before = config.to_json()
    resolved = settings.resolve(config, "digits")
    assert config.to_json() == before and config.batch_size is None
    # Resolving again changes nothing.
    assert settings.resolve(resolved, "digits").to_json() == resolved.to_json()


BAD = [
    (dict(threat__eps=-0.1), "config.threat.eps=-0.1 must be a finite number >= 0"),
    (dict(threat__eps=8.0), "config.threat.eps=8.0 exceeds 1, .* write 8/255"),
    (dict(threat__eps=float("nan")), "config.threat.eps=nan must be a finite"),
    (dict(threat__norm="l2", threat__eps=128.0), "config.threat.eps=128.0 exceeds 8, the l2 diam"),
    (dict(threat__norm="linfty"), "config.threat.norm='linfty' is not .*did you mean 'linf'"),
    (dict(threat__step_size=-1.0), "config.threat.step_size=-1.0 must be a finite number >= 0"),
    (dict(threat__num_steps=-1), "config.threat.num_steps=-1 must be an integer >= 0"),
    (dict(eval__num_steps=-1), "config.eval.num_steps=-1 must be"),
    (dict(eval__num_restarts=0), "config.eval.num_restarts=0 must be an integer >= 1"),
    (dict(eval__every=0), "config.eval.every=0 must be an integer >= 1"),
    (dict(eval__batch_size=0), "config.eval.batch_size=0 must be"),
    (
        dict(entropy__preset="ucla"),
        "config.entropy.preset='ucla' is not one of 'ucla_exact', 'lua'",
    ),
    (dict(entropy__n_in=-1), "config.entropy.n_in=-1 must be an integer >= 0"),
    (
        dict(optimizer="entropy_sgd", entropy__n_in=0),
        "config.entropy.n_in=0 .*use --config.optimizer=sgd",
    ),
    (dict(entropy__learning_rate=-1.0), "config.entropy.learning_rate=-1.0 must be"),
    (dict(entropy__gamma=-1.0), "config.entropy.gamma=-1.0 must be a finite number >= 0"),
    (dict(entropy__noise=float("inf")), "config.entropy.noise=inf must be"),
    (dict(entropy__new_weight=0.0), r"config.entropy.new_weight=0.0 must be in \(0, 1\]"),
    (dict(entropy__momentum=1.0), r"config.entropy.momentum=1.0 must be in \[0, 1\)"),
    (dict(momentum=1.0), r"config.momentum=1.0 must be in \[0, 1\)"),
    (dict(learning_rate=float("nan")), "config.learning_rate=nan must be a finite number"),
    (dict(weight_decay=-1e-4), "config.weight_decay=-0.0001 must be"),
    (dict(lr_drops=(100, 150)), "fractions of the run .* 100 and 150 of 200 give .0.5, 0.75"),
    (dict(lr_drops=("half",)), "config.lr_drops=.'half',. must be fractions"),
    (dict(batch_size=0), "config.batch_size=0 must be an integer >= 1"),
    (dict(num_epochs=0), "config.num_epochs=0 must be an integer >= 1"),
    (dict(seed=-1), "config.seed=-1 must be an integer >= 0"),
    (dict(seed=2**32), "config.seed=4294967296 must be below"),
    (dict(width=0), "config.width=0 must be an integer >= 1"),
    (dict(train_size=0), "config.train_size=0 must be"),
    (dict(model="preact_resnet"), "config.model='preact_resnet' .*did you mean 'preact_resnet18'"),
    (dict(optimizer="adam"), "config.optimizer='adam' is not one of 'sgd', 'entropy_sgd'"),
    (dict(precision="float16"), "config.precision='float16' .*did you mean 'bfloat16'|'float32'"),
    (dict(selection="best"), "config.selection='best' is not one of"),
    (dict(augment="crop"), "config.augment='crop' is not one of"),
    (dict(bn__attack="Train"), "config.bn.attack='Train' .*did you mean 'train'"),
    (dict(bn__slow_weights="none"), "config.bn.slow_weights='none' is not one of"),
    (dict(objective="trade"), "config.objective='trade' is not .* did you mean 'trades'"),
    (dict(objective="trades", bn__attack="train"), "config.bn.attack .under TRADES.='train' is"),
    (dict(objective="trades", threat__norm="l1"), "config.threat.*l1"),
    (dict(trades__preset="awp"), "config.trades.preset='awp' has no effect; .*objective=trades"),
    (dict(threat__warmup=-1.0), "config.threat.warmup=-1.0 must be a finite number >= 0"),
    (dict(threat__warmup=200.0), "config.threat.warmup=200.0 leaves none of the 200 .* use fewer"),
    (dict(trades__beta=-1.0), "config.trades.beta=-1.0 must be a finite number >= 0"),
    (dict(awp__gamma=0.1), "config.awp.gamma=0.1 has no effect without --config.awp.enabled=true"),
    (dict(awp__enabled=True, awp__gamma=-0.1), "config.awp.gamma=-0.1 must be"),
    (dict(awp__enabled=True, warmup_epochs=200), "leaves none of the 200 epochs for AWP"),
    (dict(optimizer="entropy_sgd", warmup_epochs=200), "leaves no epochs for EntropySGD"),
    (dict(warmup_epochs=-1), "config.warmup_epochs=-1 must be an integer >= 0"),
    (dict(first_epoch=2), "config.first_epoch=2 must be 0 or 1"),
    (dict(lr_unit="step"), "config.lr_unit='step' is not one of 'minibatch', 'epoch'"),
    (dict(entropy__stop_at=0.0), "config.entropy.stop_at=0.0 must be a fraction of the run"),
    (dict(entropy__beta_aware=True), "beta_aware requires --config.entropy.second_order=true"),
    (dict(entropy__alpha=0.3, entropy__new_weight=0.3), "new_weight=0.3 and .*alpha=0.3 .*disag"),
    (dict(entropy__alpha_weighs="both"), "config.entropy.alpha_weighs='both' is not one of"),
    (dict(eval__eps=8.0), "config.eval.eps=8.0 exceeds 1"),
]


@pytest.mark.parametrize(
    ("fields", "message"), BAD, ids=lambda v: None if isinstance(v, str) else str(v)
)
def test_a_value_that_makes_no_sense_is_one_clear_error(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve(**fields)
    assert "\n" not in str(error.value)


def test_a_config_of_another_data_set_names_its_entry_point():
    config = settings.load_config("at", "paper", "cifar10")
    with pytest.raises(ValueError, match="'digits'; run python -m experiments.cifar10"):
        settings.resolve(config, "digits")


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="dataset='cifar' is not .* did you mean 'cifar10'"):
        settings.resolve(settings.base(), "cifar")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(batch_size=1301), "config.batch_size=1301 exceeds the 1300 training images; use --c"),
        (dict(train_size=60, batch_size=64), "config.batch_size=64 exceeds the 60 training images"),
        (
            dict(train_size=1301),
            "config.train_size=1301 exceeds the 1300 .* --config.train_size=1300",
        ),
        (dict(test_size=361), "config.test_size=361 exceeds the 360 images"),
        (dict(selection_size=1437), "selection_size must be .*smaller than the training set .1437"),
    ],
)
def test_more_images_than_there_are(fields, message):
    with pytest.raises(ValueError, match=message):
        load_task(resolve(scale="laptop", **fields))


def test_the_paper_trains_on_all_images_when_it_selects_on_test():
    task = load_task(resolve(selection="test"))
    assert len(task.train.labels) == 1437
    assert task.selection is task.test


def test_selection_images_are_apart_from_training_images():
    task = load_task(resolve(scale="laptop"))
    assert len(task.selection.labels) == 137 and len(task.train.labels) == 1300
    both = [*task.selection.images, *task.train.images]
    whole = sorted(image.tobytes() for image in task.dataset.train_images)
    assert sorted(image.tobytes() for image in both) == whole
    # Neither the split nor a subset depends on the run's seed.
    other = load_task(resolve(scale="laptop", seed=5))
    assert (other.train.images == task.train.images).all()
