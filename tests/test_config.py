"""The keys, groups and defaults of the contract; what is wrong is told with the key, the value and the choices."""

import re
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf

from kdx import cli
from kdx.chain.optimizer import build_optimizer, build_schedule
from kdx.config.settings import keep_environment, read_settings
from kdx.errors import KdxError
from kdx.losses.distillation import Distillation, Weight
from kdx.losses.hard import HardLoss
from kdx.training.learner import Learner
from kdx.training.runtime import choose_precision
from kdx.training.schedules import Span
from tests.conftest import CONF, TINY, compose_config, settings_of

GROUPS = ("dataset", "model", "stage", "kd", "optimizer", "scheduler")
OPTIONS = [
    f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml")) if path.stem[0] != "_"
]

DEFAULTS = {
    "dataset.name": "cifar10",
    "dataset.resize": None,
    "dataset.normalize": "auto",
    "model.teacher": "resnet50",
    "model.assistant": "resnet34",
    "model.student": "resnet18",
    "model.pretrained": False,
    "model.freeze_backbone": False,
    "model.stem": "auto",
    "stage.teacher.guide": None,
    "stage.assistant.guide": "teacher",
    "stage.student.guide": "assistant",
    "stage.student.epochs": None,
    "stage.student.batch_size": None,
    "stage.student.lr": None,
    "stage.student.pretrained": None,
    "stage.student.checkpoint": None,
    "stage.reuse": "exact",
    "stage.missing": "train",
    "kd.temperature": 4.0,
    "kd.alpha": 0.7,
    "optimizer.lr": 0.001,
    "optimizer.weight_decay": 1e-4,
    "epochs": 300,
    "batch_size": 32,
    "amp": "auto",
    "device": "auto",
    "num_workers": 4,
    "log_interval": 10,
    "save_interval": 50,
    "seed": 42,
    "deterministic": True,
    "threads": None,
    "plan": False,
}


def test_defaults_are_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config()
    for key, value in DEFAULTS.items():
        assert OmegaConf.select(config, key, throw_on_missing=True) == value, key
    assert config.optimizer._target_ == "torch.optim.AdamW"
    assert config.scheduler._target_ == "kdx.training.schedules.cosine"
    assert compose_config("optimizer=sgd").optimizer.momentum == 0.9
    monkeypatch.delenv("KDX_DATA", raising=False)
    assert compose_config().data_dir == "data"
    monkeypatch.setenv("KDX_DATA", "elsewhere")
    assert compose_config().data_dir == "elsewhere"


def test_the_contracts_options_are_all_there() -> None:
    wanted = "cifar10 cifar100 digits imagefolder pathmnist chestmnist dermamnist octmnist pneumoniamnist retinamnist"
    wanted += " breastmnist bloodmnist tissuemnist organamnist organcmnist organsmnist"
    assert {f"dataset={name}" for name in wanted.split()} <= set(OPTIONS)
    assert {"stage=teacher", "stage=assistant", "stage=student", "stage=all", "kd=hinton", "kd=none"} <= set(OPTIONS)
    assert {"scheduler=cosine", "scheduler=step", "scheduler=none", "optimizer=adam"} <= set(OPTIONS)


def learner() -> Learner:
    return Learner(
        torch.nn.Linear(2, 2),
        Distillation(HardLoss("multi-class"), Weight.of(1)),
        choose_precision("off", torch.device("cpu")),
    )


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_builds(option: str) -> None:
    settings = read_settings(compose_config(option))
    for stage in settings.stages:
        optimizer = build_optimizer(stage, learner())
        assert isinstance(optimizer, torch.optim.Optimizer)
        schedule = build_schedule(stage, optimizer, Span(stage.recipe.epochs, 2), "multi-class")
        assert (schedule.scheduler is None) == (option == "scheduler=none")
    if option.startswith("dataset="):
        target = settings.source["_target_"]
        module, _, name = target.rpartition(".")
        assert callable(getattr(__import__(module, fromlist=[name]), name))


@pytest.mark.parametrize("path", sorted((CONF / "experiment").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_composes_and_says_what_it_is_for(path: Path) -> None:
    name = path.relative_to(CONF / "experiment").with_suffix("")
    read_settings(compose_config(f"experiment={name}"))
    assert f"experiment={name}" in path.read_text().split("\n")[1], "the second line is the command"


def test_experiment_wins_over_the_main_file() -> None:
    config = compose_config("experiment=quickstart")
    assert config.dataset.name == "digits" and config.epochs < 300
    assert compose_config("experiment=quickstart", "epochs=7").epochs == 7


def test_stage_values_replace_the_global_ones() -> None:
    settings = settings_of("epochs=9", "stage.student.epochs=3", "stage.student.lr=0.5", "stage.student.batch_size=4")
    teacher, student = settings.stage("teacher"), settings.stage("student")
    assert (teacher.recipe.epochs, student.recipe.epochs, student.recipe.batch_size) == (9, 3, 4)
    assert student.optimizer["lr"] == 0.5 and student.config["epochs"] == 3


BAD = [  # overrides, and what the one line must hold
    ("kd.temperature=0", "kd.temperature=0: a finite number above 0"),
    ("kd.temperature=-1", "kd.temperature=-1"),
    ("kd.temperature=nan", "kd.temperature=nan"),
    ("kd.temperature=inf", "kd.temperature=inf"),
    ("kd.temperature=abc", "kd.temperature=abc"),
    ("kd.temperature=true", "kd.temperature=True"),
    ("kd.alpha=1.5", "kd.alpha=1.5: a number from 0 to 1"),
    ("kd.alpha=-0.1", "kd.alpha=-0.1"),
    ("kd.alpha=nan", "kd.alpha=nan"),
    ("epochs=0", "epochs=0: a whole number of at least 1"),
    ("epochs=1.5", "epochs"),
    ("epochs=many", "epochs"),
    ("batch_size=0", "batch_size=0"),
    ("batch_size=-4", "batch_size=-4"),
    ("optimizer.lr=0", "optimizer.lr=0"),
    ("optimizer.lr=nan", "optimizer.lr=nan"),
    ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1"),
    ("optimizer=sgd optimizer.momentum=1", "optimizer.momentum=1"),
    ("epochs", "error: epochs: a value is missing, write epochs=VALUE"),
    ("seed=1 2", "error: 2: a value is missing, write 2=VALUE"),
    ("optimizer=adamv", "optimizer=adamv: no such option; did you mean 'adam'?"),
    ("scheduler=cosin", "scheduler=cosin: no such option; did you mean 'cosine'?"),
    ("kd=hintn", "did you mean 'hinton'?"),
    ("dataset=cifar11", "dataset=cifar11: no such option; did you mean 'cifar10'?"),
    ("dataset=pathminst", "did you mean 'pathmnist'?"),
    ("stage=studnt", "did you mean 'student'?"),
    ("experiment=quikstart", "did you mean 'quickstart'?"),
    ("amp=bf61", "amp=bf61: choose auto, bf16, fp16, off; did you mean 'bf16'?"),
    ("device=gpu", "device=gpu: choose auto, cpu, cuda"),
    ("seed=-1", "seed=-1"),
    ("seed=x", "seed"),
    ("threads=0", "threads=0"),
    ("num_workers=-1", "num_workers=-1"),
    ("log_interval=0", "log_interval=0"),
    ("save_interval=-1", "save_interval=-1"),
    ("visualize.samples=-1", "visualize.samples=-1"),
    ("deterministic=perhaps", "deterministic"),
    ("kd.temprature=3", "kd.temprature: no such key; did you mean 'kd.temperature'?"),
    ("kd=dkd kd.bet=3", "kd.bet: no such key; did you mean 'kd.beta'?"),
    ("kd=combined kd.terms.at.weigth=3", "kd.terms.at.weigth: no such key; did you mean 'kd.terms.at.weight'?"),
    ("kd=combined kd.weight=3", "kd.weight: no such key; did you mean 'kd.terms.at.weight'?"),
    ("kd=combined kd.terms.att.weight=3", "kd.terms.att.weight: no such key; did you mean 'kd.terms.at.weight'?"),
    ("epoch=3", "epoch: no such key; did you mean 'epochs'?"),
    ("datset=digits", "datset: no such key; did you mean 'dataset'?"),
    ("+epoch=3", "epoch: no such key; did you mean 'epochs'?"),
    ("+dataset.sise=3", "dataset.sise: no such key; did you mean 'size'?"),
    ("+stage.student.epoch=3", "stage.student.epoch"),
    ("stage.student.epochs=0", "stage.student.epochs=0"),
    ("stage.student.epochs=x", "stage.student.epochs"),
    ("stage.student.lr=-1", "stage.student.lr=-1"),
    (
        "stage.student.guide=techer",
        "stage.student.guide=techer: choose null, teacher, assistant; did you mean 'teacher'?",
    ),
    ("stage.teacher.guide=student", "guide each other in a circle"),
    ("stage.reuse=always", "stage.reuse=always: choose exact, latest, never"),
    ("stage.missing=ignore", "stage.missing=ignore: choose train, error"),
    ("stage.deliver=pupil", "stage.deliver=pupil: choose all, teacher, assistant, student"),
    ("model.stem=tiny", "model.stem=tiny: choose auto, small, imagenet"),
    ("model.pretrained=maybe", "model.pretrained=maybe: choose true, false"),
    ("model.student=null", "model.student=None: stage.student needs a network"),
    ("+model.studnet=resnet18", "model.studnet=resnet18: no role of this name under stage; did you mean 'student'?"),
    (
        "dataset.augment=[flop]",
        "flop: choose crop, flip, jitter, rotate, resized_crop, erase, trivial, mixup, cutmix, none; or a mapping {name: {option: value}} is needed; did you mean 'flip'?",
    ),
    ("dataset.augment=flop", "dataset.augment=flop: flop: choose crop, flip"),
    (
        "dataset.augment={mixp:{}}",
        "dataset.augment=mixp: choose crop, flip, jitter, rotate, resized_crop, erase, trivial, mixup, cutmix; did you mean 'mixup'?",
    ),
    (
        "dataset.augment={mixup:{alfa:1}}",
        "dataset.augment.mixup.alfa: no such option; did you mean 'alpha'? choose alpha\n",
    ),
    ("dataset.augment={mixup:{alpha:nan}}", "dataset.augment.mixup.alpha=nan: a finite number of at least 0.01"),
    ("dataset.augment={mixup:{alpha:true}}", "dataset.augment.mixup.alpha=True: a finite number"),
    ("dataset.augment={mixup:0.2}", "dataset.augment.mixup=0.2: a mapping {option: value} is needed, or null"),
    ("dataset.augment={erase:{chance:1.5}}", "dataset.augment.erase.chance=1.5: a number from 0 to 1 is needed"),
    (
        "dataset.augment={rotate:{degrees:200}}",
        "dataset.augment.rotate.degrees=200: a finite number above 0 and at most 180",
    ),
    (
        "dataset.augment={resized_crop:{scale:[1,0.5]}}",
        "dataset.augment.resized_crop.scale=[1, 0.5]: [low, high] with low <= high is needed",
    ),
    ("dataset.augment={resized_crop:{scale:[0.5]}}", "dataset.augment.resized_crop.scale=[0.5]: a list of 2 values"),
    ("dataset.augment=[crop] dataset.augment={crop:{}}", "write '~dataset.augment' '+dataset.augment={crop:{}}'"),
    ("dataset.augment=[mixup] kd.cache_logits=true", "kd.cache_logits=true: logits of mixed images are not kept"),
    ("dataset.normalize=imagnet", "did you mean 'imagenet'?"),
    ("dataset.normalize={mean:[0.5],std:[0]}", "dataset.normalize="),
    ("dataset.normalize=null", "dataset.normalize=None: choose auto, imagenet, dataset; or {mean"),
    ("dataset.normalize={mean:0.5,std:0.2}", "dataset.normalize="),
    ("scheduler=step scheduler.gamma=abc", "scheduler.gamma=abc"),
    ("--multirun plan=true seed=1,2", "plan=true: plans one run; leave --multirun out"),
    ("+dataset.source=abc", "dataset.source"),
    ("dataset.resize=0", "dataset.resize=0"),
    ("dataset=pathmnist dataset.size=32", "dataset.size=32: choose 28, 64, 128, 224"),
    ("dataset.size=64", "dataset.size=64: cifar10 has one size"),
    ("dataset.name=../../x", "dataset.name=../../x"),
    (
        "kd.alpha=2 kd.temperature=0 epochs=0",
        "epochs=0: a whole number of at least 1 is needed; kd.temperature=0: a finite number above 0 is needed; kd.alpha=2",
    ),
    ("dataset.name=nan", "dataset.name=nan: a plain name is needed"),
    ("data_dir=inf", "data_dir=inf: a path is needed"),
    ("visualize.layer=nan", "visualize.layer=nan: the dotted name of a layer"),
    ("+optimizer.eps=nan", "optimizer.eps=nan: a finite number above 0"),
    ("+scheduler.eta_min=inf", "scheduler.eta_min=inf"),
    ("+kd.mine=[1,{a:nan}]", "kd.mine.a=nan: a finite number"),
    ("kd._target_=mine.Loss +kd.deep={a:[-inf]}", "kd.deep.a=-inf: a finite number"),
    ("optimizer.lr=1e400", "optimizer.lr=inf"),
    ("optimizer.lr=0x10", "optimizer.lr=0x10: a finite number above 0"),
    ("dataset.source=abc", "dataset.source=abc: a mapping {key: value} is needed"),
    (
        "dataset.source={a:1}",
        "dataset.source: the value holds keys that are not there yet; add each with +dataset.source.<key>",
    ),
    ("dataset.source._target_=null", "dataset.source._target_=None: the dotted name of a callable"),
    ("dataset.source._target_=5", "dataset.source._target_=5"),
    ("experiment=5", "experiment=5: no such option; choose "),
    ("threads=100000", "threads=100000: a whole number of at least 1 and at most 512"),
    ("model.student=.mynet:small", "model.student=.mynet:small: stage.student needs a network"),
    ("seed=18446744073709551616", "seed=18446744073709551616: a whole number of at least 0"),
    ("num_workers=1000000000000", "num_workers=1000000000000"),
    ("batch_size=1000000000", "batch_size=1000000000"),
    ("optimizer.fused=abc", "optimizer.fused=abc: choose true, false, or null"),
    ("+optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9, 1.0]: 1.0: a number from 0 to below 1"),
    ("+optimizer.betas=0.9", "optimizer.betas=0.9: a list of 2 values"),
    ("+scheduler.T_max=true", "scheduler.T_max=True: a whole number of at least 1"),
    ("+scheduler.T_max=0", "scheduler.T_max=0"),
    ("scheduler=step scheduler.milestones=[-1]", "scheduler.milestones=[-1]: -1: a finite number above 0"),
    ("dataset=imagefolder dataset.in_memory_gb=-5", "dataset.in_memory_gb=-5"),
    ("+stage.all={guide:teacher} +model.all=resnet18", "stage=all: this word cannot name a role"),
    ("+stage.pretrained={guide:teacher}", "stage=pretrained: this word cannot name a role"),
    ("visualize.samples=1000000", "visualize.samples=1000000: a whole number of at least 0 and at most 256"),
    ("deterministic=1", "deterministic=1: choose true, false"),
    ("plan=0", "plan=0: choose true, false"),
    ("epochs=true", "epochs=True: a whole number"),
    ("dataset.name=true", "dataset.name=True: a plain name"),
    ("output_dir=", "output_dir=: a path is needed"),
    ("output_dir=null", "output_dir=None: a path is needed"),
    ("hydra.run.dir=", "hydra.run.dir=: a path is needed"),
    ("hydra.job.name=a/b", "hydra.job.name=a/b: a plain name"),
    ("hydra/launcher=joblib hydra.launcher.n_jobs=100000", "hydra.launcher.n_jobs=100000"),
    ("output_dir=" + 300 * "x", "a path whose parts have at most 255 bytes"),
    ("data_dir=" + 5000 * "x", "a text of at most 4096 characters"),
    ("data_dir=a\x1bb", "data_dir=a\\\\x1bb"),
    ("epochs=${epochs}", "epochs: Recursive interpolation"),
    ("epochs=???", r"epochs=\?\?\?: a value is needed"),
    ("kd=5", "kd=5: no such option; choose at, cc, combined"),
    ("kd=null", "kd=null: no such option; choose at, cc, combined"),
    ("dataset=digits dataset.path=x", "dataset.path=x: dataset=digits reads no folder; choose dataset=imagefolder\n"),
    ("dataset=digits +dataset.path=x", "dataset.path=x: dataset=digits reads no folder; choose dataset=imagefolder\n"),
    ("+dataset.white=4095", "dataset.white=4095: dataset=cifar10 reads no picture files; choose dataset=imagefolder\n"),
    ("dataset=pathmnist dataset.cache=disk", "dataset.cache=disk: dataset=pathmnist reads no picture files; choose"),
    ("+dataset.cache=auto", "dataset.cache=auto: dataset=cifar10 reads no picture files; choose"),
    ("dataset=digits +dataset.in_memory_gb=3", "or dataset.unlabelled=FOLDER"),
    (
        "dataset.unlabelled=tests dataset.cache=disk",
        "dataset.cache: not among the keys .* write [+]dataset.cache=VALUE",
    ),
    (
        "dataset=imagefolder dataset.path=x dataset.source.path=y",
        "dataset.path=x: dataset.source.path=y is read in its",
    ),
    (
        "dataset.source._target_=mine.load +dataset.path=x",
        "dataset.path=x: mine.load is not given it; write +dataset.s",
    ),
    (
        "dataset.source._target_=mine.load dataset.size=64",
        "dataset.size=64: mine.load is not given it; write +dataset.s",
    ),
    ("kd=[hinton,dkd]", "kd=[hinton,dkd]: one option is needed; several methods: kd=combined\n"),
    (
        "stage.student.kd=[hinton,dkd]",
        "stage.student.kd=[hinton,dkd]: one option is needed; several methods: stage.stu",
    ),
    (
        "optimizer=[adamw,sgd]",
        "optimizer=[adamw,sgd]: one option is needed; to try each: --multirun optimizer=adamw,sgd",
    ),
    ("dataset=[digits,pneumoniamnist]", "dataset=[digits,pneumoniamnist]: one option is needed"),
    ("model=[]", r"model=\[\]: one option is needed; choose resnet, thin, vit"),
    ("hydra/launcher=[basic,joblib]", "hydra/launcher=[basic,joblib]: one option is needed"),
    ("--multirun kd=[hinton,dkd],at", "kd=[hinton,dkd]: one option is needed; several methods: kd=combined"),
    ("--multirun stage.student.kd=at,[hinton,dkd]", "stage.student.kd=[hinton,dkd]: one option is needed"),
    (
        "--multirun kd=hinton,at kd.temperature=2,4",
        "kd.temperature: kd=at has no such key; its keys: .*layers.*in the job",
    ),
    ("--multirun kd=hinton,at kd.temperature=2", "kd.temperature: kd=at has no such key; its keys: .*in the job kd=at"),
    (
        "--multirun kd=at,fitnet kd.layers=last_map",
        "kd.layers: a value .* to be swept, too; write 'kd.layers=choice[(]VAL",
    ),
    ("--multirun kd=at,dkd kd.layers=last_map", "kd.layers: kd=dkd has no such key; its keys: teachers, alpha, beta"),
    ("--multirun dataset=digits,imagefolder dataset.path=x", "dataset.path=x: dataset=digits reads no folder; choose"),
    ("~kd kd.temperature=3", "error: kd.temperature: ~kd leaves it out"),
    ("model=thin,vit", "error: model=thin,vit: several values; add --multirun to try each\n"),
    ("stage.student.kd=at,dkd", "error: stage.student.kd=at,dkd: several values; add --multirun to try each\n"),
    ("kd.gamma=2", "kd.gamma: kd=hinton has no such key; its keys: teachers, temperature"),
    ("kd=hard kd.layers=head", "kd.layers: not among the keys of the chosen option; write [+]kd.layers=VALUE"),
    (
        "optimizer.momentum=0.5",
        "optimizer.momentum: optimizer=adamw has no such key; its keys: decay, lr, weight_decay",
    ),
    ("scheduler=none scheduler.gamma=2", "scheduler.gamma: scheduler=none has no such key; its keys: warmup, every"),
    ("dataset=digits dataset.source.path=x", "dataset.source.path: dataset=digits has no such key"),
    (
        "kd.temperature=2,4",
        "kd.temperature=2,4: several values; add --multirun to try each, or write kd.temperature=[2,4]",
    ),
    ("seed=range(3)", "seed=range(3): several values; add --multirun to try each\n"),
    ("stage.student.epochs=2,4", "error: stage.student.epochs=2,4: several values; add --multirun"),
    ("lr=0.1", "lr: no such key; did you mean 'optimizer.lr'?"),
    ("--lr=0.1", "did you mean optimizer.lr=...?"),
    ("--terms=0 kd=combined", "did you mean kd.terms=...?"),
    ("stage.teacher.labeled=0.1", "stage.teacher.labeled: no such key; did you mean 'stage.teacher.labelled'?"),
    ("stage.student.model=resnet18", "stage.student.model: no such key; did you mean 'model.student'?"),
    ("stage.studnt.epochs=3", "error: stage.studnt: no such role; did you mean 'student'?\n"),
    ("micro_batches=128", "128: parts of at least two images are needed, and the teacher's batch_size is 32\n"),
    (
        "class_weights=balance",
        "or a list of 2 to 1000000 values is needed; for each: .* or null; did you mean 'balanced'.$",
    ),
    ("stage.student.seed=3", "stage.student.seed: no such key; seed is the same for all stages"),
    ("select=acc", "select=acc: choose auto, accuracy, auc, f1, loss; did you mean 'accuracy'?"),
    ("stage.student.kd=foo", "error: stage.student.kd=foo: no such option; choose at"),
    ("stage.student.scheduler=cosin", "stage.student.scheduler=cosin: no such option; did you mean 'cosine'? choose"),
    ("--multirun stage.student.kd=at,foo", "error: stage.student.kd=foo: no such option; choose at"),
    ("optimizer=sgd optimizer._target_=mine.Optimizer optimizer.eps=1", "optimizer.eps: optimizer=sgd has no such key"),
    ("dataset.normalize={mean:[125.0],std:[60]}", "pixels scaled to 0-1"),
    ("experiment=search_kd search.trials=0", "search.trials=0: a whole number of at least 1"),
    ("experiment=search_kd search.name=a/b", "search.name=a/b: a plain name"),
    ("experiment=search_kd +search.trial=3", "search.trial: no such key; did you mean 'trials'?"),
    ("experiment=search_kd search.space={kd.alpha:{low:nan}}", "search.space"),
    ("experiment=nan kd=none", "error: experiment=nan: no such option; choose"),
    ("stage.student.guide='null'", "stage.student.guide=null: choose null, teacher, assistant"),
    ("stage.student.guide=student", "stage.student.guide=student: choose null, teacher, assistant"),
    ("stage.student.guide=[teacher,teacher]", "choose null, teacher, assistant, or some of them in a list, each once"),
    ("stage.student.guide=[]", "choose null, teacher, assistant, or some of them in a list"),
    ("stage.student.guide=[teacher,techer]", "choose null, teacher, assistant; did you mean 'teacher'?"),
    ("model.student=5", "model.student=5: stage.student needs a network"),
    (
        "stage.teacher.checkpoint_key=ema",
        "checkpoint_key=ema: it names a place in a file; stage.teacher.checkpoint=FILE",
    ),
    ("stage.student.start=teacher stage.student.checkpoint_key=x", "checkpoint_key=x: .* or stage.student.start=FILE"),
    ("--epochs 3", "unknown option --epochs: keys are written key=value, without dashes; did you mean epochs=...?"),
    ("--temperature=3", "did you mean kd.temperature=...?"),
    ("--config-dir nowhere", "--config-dir nowhere: no such folder"),
    ("--multirun kd.temperature=2,4,-6", "kd.temperature=-6: .*in the job kd.temperature=-6"),
    ("--multirun kd.temperature=2,4 optimizer=adamw,adamv", "did you mean 'adam'?"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=[overrides for overrides, _ in BAD])
def test_bad_values_are_one_line_with_key_value_and_choices(
    overrides: str, message: str, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["kdx", *overrides.split(" ")])
    with pytest.raises(SystemExit) as stop, cli.one_line_errors(CONF):
        cli.check_jobs(CONF)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "Traceback" not in printed
    assert re.search(message, printed) or message in printed
    assert not re.search(r"\?; ?(or|choose|its|for) ", printed), "a question mark ends what it asks"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+optimizer.momentun=0.5",
            "optimizer.momentun: torch.optim.AdamW has no such key; did you mean 'momentum'? its",
        ),
        ("+optimizer.params=[1]", "optimizer: torch.optim.AdamW cannot be built: "),
        (
            "optimizer._target_=torch.optim.RMSprop",
            "optimizer.fused: torch.optim.RMSprop has no such key; leave it out with ~optimizer.fused; its",
        ),
    ],
)
def test_what_a_shipped_option_does_not_take_is_one_line(override: str, message: str) -> None:
    stage = settings_of(override).stage("student")
    with pytest.raises(KdxError, match=re.escape(message)):
        build_optimizer(stage, learner())


def test_numbers_from_the_environment_are_numbers_and_a_number_may_name_a_folder(monkeypatch) -> None:
    monkeypatch.setenv("MY_EPOCHS", "3")
    monkeypatch.setenv("MY_FLAG", "false")
    settings = settings_of("epochs=${oc.env:MY_EPOCHS}", "deterministic=${oc.env:MY_FLAG}", "output_dir=2024")
    assert settings.stage("student").recipe.epochs == 3 and settings.deterministic is False
    assert settings.output_dir == "2024"
    assert settings_of("dataset=imagefolder", "data_dir=7").source["path"] == "7"
    assert settings_of("stage.teacher.checkpoint=5").stage("teacher").checkpoint == "5"


def test_full_error_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(KdxError), cli.one_line_errors(CONF):
        cli.check_jobs(CONF, ["epochs=0"])


def test_good_command_lines_pass_the_check() -> None:
    for line in (
        "stage=student dataset=pathmnist",
        "stage=all dataset=cifar10 model.pretrained=true",
        "--multirun kd.temperature=2,4,6",
        "--multirun kd.temperature=2,4,6 kd.alpha=0.3,0.7 hydra/launcher=joblib",
        "stage=student plan=true",
        "dataset=imagefolder dataset.path=x dataset.size=224",
        "--cfg job epochs=3",
    ):
        cli.check_jobs(CONF, line.split(" "))


def test_dump_keeps_the_environment_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "canary")
    settings = settings_of("data_dir=${oc.env:SECRET_TOKEN}", "dataset=imagefolder")
    dump = str(settings.stage("student").config)
    assert "canary" not in dump and "${oc.env:SECRET_TOKEN}" in dump
    assert settings.source["path"] == "canary"  # the run itself sees the value
    assert keep_environment({"a": ["${oc.env:X}", "${epochs}", 1]}) == {"a": ["\\${oc.env:X}", "${epochs}", 1]}


def test_values_from_the_environment_are_the_runs_and_change_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    for rate in ("0.1", "0.2"):
        monkeypatch.setenv("MY_RATE", rate)
        rates.append(settings_of("optimizer.lr='${oc.decode:${oc.env:MY_RATE}}'").stage("student").optimizer["lr"])
    assert rates == [0.1, 0.2]


def test_users_own_data_set_may_be_called_mnist() -> None:
    settings_of("dataset.name=mnist", "dataset.size=64", "+dataset.source.size='${dataset.size}'")


def test_a_users_own_data_set_takes_what_its_function_takes(tmp_path: Path) -> None:
    """Of its own file, or in the place of a shipped one; a key that nothing reads was accepted without a word."""
    assert settings_of("dataset=imagefolder", "dataset.path=x").source["path"] == "x"
    assert settings_of("+dataset.path=x", "+dataset.source.folder='${dataset.path}'").source["folder"] == "x"
    assert settings_of("dataset=imagefolder", "dataset.source.path=x").source["path"] == "x"
    own = ["~dataset.source", "+dataset.source={_target_: tests.tiny.dataset}"]
    read_settings(compose_config("dataset=imagefolder", *own))  # what conf has for another source is not a wish
    with pytest.raises(KdxError, match=r"^dataset.white=9: tests.tiny.dataset is not given it; write \+dataset.source"):
        settings_of("+dataset.white=9")
    settings_of(f"dataset.unlabelled={tmp_path}", "+dataset.cache=disk", "+dataset.in_memory_gb=1")


def test_what_a_file_of_the_users_own_holds_is_known(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    (tmp_path / "kd").mkdir()
    (tmp_path / "kd" / "own.yaml").write_text("_target_: kdx.losses.AttentionTransfer\nlayers: stages\nhard: 1\n")
    told = "kd.temperature: kd=own has no such key; its keys: teachers, layers, hard"
    for line in (["kd=own", "kd.temperature=2"], ["-m", "kd=own,hinton", "kd.temperature=2,3"]):
        monkeypatch.setattr(sys, "argv", ["kdx", *line, "--config-dir", str(tmp_path)])
        with pytest.raises(SystemExit), cli.one_line_errors(CONF):
            cli.check_jobs(CONF)
        assert capsys.readouterr().err.startswith(f"error: {told}")


def test_broken_yaml_of_a_user_is_one_line(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "broken.yaml").write_text("epochs: [1")
    with pytest.raises(SystemExit), cli.one_line_errors(CONF):
        cli.check_jobs(CONF, ["--config-dir", str(tmp_path), "experiment=broken"])
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "broken.yaml" in printed


def test_conf_uses_no_hydra_resolver() -> None:
    """A ${hydra:...} in a config breaks compose()."""
    for path in CONF.rglob("*.yaml"):
        assert "${hydra:" not in path.read_text(), path


def test_tiny_overrides_of_the_tests_are_valid() -> None:
    assert read_settings(compose_config(*TINY)).dataset_name == "tiny"


@pytest.mark.parametrize(
    "value", ["", " ", ".", "./", "..", "../..", "/", "//", "a_file", "a_file/below", "a\0b", "a\nb"]
)
@pytest.mark.parametrize("key", ["output_dir", "hydra.run.dir", "hydra.sweep.dir"])
def test_only_a_folder_of_its_own_takes_results(
    key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written: cleaning would otherwise find what is not a run's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    quoted = "'" + value + "'"
    with pytest.raises((KdxError, HydraException), match="(?s)output_dir|hydra.run.dir|hydra.sweep.dir"):
        cli.check_jobs(CONF, [f"{key}={quoted}", "experiment=quickstart"])
    with pytest.raises(KdxError, match=key):
        cli.check_jobs(CONF, [f"{key}={tmp_path}", "experiment=quickstart"])
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("", "from_scratch"),
        ("model.pretrained=true", "imagenet_pretrained"),
        ("stage.teacher.pretrained=true", "teacher_pretrained"),
        ("stage.teacher.start=weights.pth stage.assistant.pretrained=true", "teacher_assistant_pretrained"),
        ("model.pretrained=true stage.student.pretrained=false", "teacher_assistant_pretrained"),
        ("stage.teacher.checkpoint=weights.pth", "teacher_pretrained"),
        ("stage.teacher.head=false stage.teacher.pretrained=true", "teacher_pretrained"),
        ("stage.teacher.head=false model.teacher=my:dino", "teacher_pretrained"),
        ("stage.student.start=assistant", "from_scratch"),
        ("model.pretrained=true stage.student.start=assistant", "imagenet_pretrained"),
        ("model.pretrained=true stage.teacher.head=false", "imagenet_pretrained"),
        ("model.pretrained=true stage.teacher.checkpoint=weights.pth", "teacher_assistant_student_pretrained"),
        ("model.pretrained=true stage.student.start=weights.pth", "teacher_assistant_student_pretrained"),
        ("model.pretrained=true model.student=timm/vit_tiny_patch16_224", "teacher_assistant_student_pretrained"),
        (
            "model.pretrained=true stage.assistant.pretrained=false stage.student.start=assistant",
            "teacher_student_pretrained",
        ),
        ("stage=teacher stage.student.pretrained=true", "from_scratch"),  # is not a network of this run
        ("stage=student stage.student.guide=teacher stage.assistant.checkpoint=weights.pth", "from_scratch"),
        ("stage=student kd=none stage.teacher.pretrained=true", "from_scratch"),
        ("stage=student stage.assistant.checkpoint=weights.pth model.pretrained=true", "assistant_student_pretrained"),
        ("stage.assistant.start=student stage.student.start=assistant", "from_scratch"),  # refused later, too
        ("stage.student.guide=5 stage.assistant.guide=[4]", "from_scratch"),
        ("model.pretrained=perhaps", "from_scratch"),  # refused later, in one line
    ],
)
def test_a_run_is_filed_under_how_its_networks_start(overrides: str, name: str) -> None:
    """pitfall(12): what holds for one stage is not said of all."""
    config = compose_config(*overrides.split())
    OmegaConf.update(config, "folder", "${kdx.start:${model.pretrained}}", force_add=True)
    assert config.folder == name
