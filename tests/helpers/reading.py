"""A documented command as a reader means it: with its holes filled in, and made small."""

import re
import shlex

# What a reader fills in, and the document ("" for all of them) in which it means that.
FILLED_IN = [
    ("README.md", "<run folder>", "runs/mine/covidsegnet-fv-paspp/lesion/seed0"),
    ("docs/how-to.md", "<run folder>", "runs/train/paspp_outputs/lesion/seed0"),
    ("docs/how-to.md", "<other run>", "runs/train/covidsegnet-fv-paspp/lesion/seed0"),
    ("docs/how-to/reproduce-public.md", "<run folder>", "runs/table1/covidsegnet/lesion/seed0-fold0"),
    ("", "=/data/", "="),
    ("", "<command> ...", "status"),
    ("", "<command>", "status"),
    ("", "SUITE", "networks"),
    ("", "model=<name>", "model=unet3d"),
]

# Seconds instead of days, as single values: a recipe that the command itself names stays what it is.
SMALL = [
    "trainer=cpu", "logger=csv", "model.width=2", "training.patch_size_zyx=[16,16,16]", "training.max_steps=2",
    "training.validate_every=2", "training.checkpoint_every=2", "training.log_every=1", "training.loader_threads=1",
    "inference.roi_zyx=[32,48,48]", "data.spacing_zyx=[9,9,9]", "data.workers=0",
]  # fmt: skip
ONE_RUN = [*SMALL, "model=unet3d"]  # of tests that choose the network themselves
FEW_PHANTOMS = ["data.source.count=8", "data.source.shape_zyx=[34,48,48]"]
# Of the suites of `benchmark.py` that time something.
SMALL_CONTESTS = [
    "loader.shape_zyx=[34,48,48]", "loader.cases=2", "loader.patch_size_zyx=[16,24,24]", "loader.patches=3",
    "loader.rounds=1", "augment_suite.patch_size_zyx=[16,24,24]", "augment_suite.repeats=1", "augment_suite.rounds=1",
    "step.width=4", "step.patch_size_zyx=[32,32,32]", "step.rounds=1", "inference_suite.shape_zyx=[48,64,64]",
    "inference_suite.roi_zyx=[16,32,32]", "inference_suite.width=2", "inference_suite.rounds=1",
    "scoring.shape_zyx=[34,48,48]", "scoring.rounds=1", "prepare_suite.shape_zyx=[34,96,96]", "prepare_suite.rounds=1",
    "startup.rounds=1",
]  # fmt: skip
# Beside the contests.
SMALL_SUITES = {
    "networks": [], "statistics": ["statistics.trials=2"],
    "versus": [
        "versus.minutes=0.02", "versus.folds=1", "data.splits.folds=2", "data.spacing_zyx=[9,9,9]",
        'versus.train="recipe=smoke model.width=2 trainer=cpu"',
    ],
    "gpu": [
        "gpu.parts=[ceilings,rows]", "gpu.width=8", "gpu.patch_size_zyx=[32,32,32]", "gpu.rounds=1",
        "gpu.rows=[table1/unet3d]", "gpu.copy_megabytes=4", "gpu.matrix=64", "gpu.runs.steps=3", "gpu.runs.cases=4",
        "gpu.runs.shape_zyx=[34,48,48]", "gpu.runs.spacing_zyx=[6,6,6]", "gpu.scan_shape_zyx=[48,96,96]",
    ],
}  # fmt: skip
ROWS = {
    "comparison": ("table1", ["covidsegnet", "unet3d"]), "ablation": ("table2", ["ceb", "full"]),
    "today": ("table3", ["covidsegnet", "unet4"]), "recipe": ("recipe", ["base", "ema"]),
}  # fmt: skip
# Two folds: of five that are named, or of data that a sweep finds to have no test set.
SOME_FOLDS = ["fold=0,1"]
TWO_FOLDS = ["data.splits.published=null", "data.splits.folds=2"]
NEED_OPTIONS = ("prepare", "evaluate", "predict", "benchmark")


class Call:
    """A command with its holes filled in: which program it starts, with which options, and how it is made small."""

    def __init__(self, command):
        self.text = self.shown = re.sub(r"\s+#.*", "", command.text)
        for document, hole, value in FILLED_IN:
            if document in ("", command.document):
                self.text = self.text.replace(hole, value)
        if re.match(r"\w+\.py ", self.text):
            self.text = f"python src/{self.text}"
        words = shlex.split(self.text)
        script = re.search(r"src/(\w+)\.py|covidseg\.cli\.(\w+)|^covidseg (\w+)", self.text)
        made = words[1] if words[0] == "make" else ""
        self.program = next(filter(None, script.groups())) if script else "shell"
        self.options = [word for word in words if "=" in word and not word.startswith("ARGS=")]
        self.args = None
        if made.startswith("sweep-"):
            self.args = " ".join(word.removeprefix("ARGS=") for word in words if word.startswith("ARGS="))
            self.program, self.options = "train", [*shlex.split(self.args), f"sweep={made.removeprefix('sweep-')}"]
        elif made in ("demo", "status"):
            self.program = made
        bare = script and words[-1].endswith((".py", f".{self.program}"))
        if "--help" in words or (bare and self.program in NEED_OPTIONS):  # a script by its name alone
            self.program = "help"

    def option(self, name, default=None):
        values = [option.removeprefix(f"{name}=") for option in self.options if option.startswith(f"{name}=")]
        return values[-1] if values else default

    @property
    def suite(self):
        """What `benchmark.py` measures."""
        named = re.search(r"benchmark\.py (?:suite=)?(\w+)", self.text)
        return named[1] if named else None

    @property
    def two_folds(self):
        """What leaves two folds of a cross-validation; nothing where there is none."""
        if self.option("data") != "covid19_ct_seg":
            return ["data.splits.folds=2"] if self.option("data.splits.folds") else []
        return SOME_FOLDS if self.option("fold") else TWO_FOLDS

    @property
    def appended(self):
        """What makes the command one of seconds."""
        if self.program == "help":
            return [] if "--help" in self.text else ["--help"]
        if self.program in ("evaluate", "predict"):
            return ["device=cpu", *(["data.workers=0"] if self.option("data") else [])]
        if self.program == "prepare":
            return ["data.workers=0", *(["plan_memory_gb=0.7"] if self.option("plan") else [])]
        if self.program == "benchmark":
            return SMALL_SUITES.get(self.suite, SMALL_CONTESTS)
        if self.program not in ("train", "baseline"):
            return []
        small = [*SMALL, *(FEW_PHANTOMS if self.option("data", "phantom") == "phantom" else [])]
        if self.option("trainer.devices"):
            small.append("trainer.devices=2")
        if sweep := self.option("sweep"):
            small.append("hydra.launcher.slots=2")
            if sweep in ROWS:
                table, rows = ROWS[sweep]
                small += [f"experiments/{table}={','.join(rows)}", "task=lesion", "seed=0"]
            small += self.two_folds
        return small

    @property
    def line(self):
        """What the shell gets."""
        if self.args is not None:
            return f"{self.text} ARGS={shlex.quote(' '.join([self.args, *self.appended]))}"
        return " ".join([self.text, *map(shlex.quote, self.appended)])
