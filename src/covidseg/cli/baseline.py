"""`python -m covidseg.cli.baseline name=demo data=phantom`: what a threshold scores, as one more row of a table."""

from omegaconf import DictConfig

from covidseg.cli.app import application


@application("train")
def main(cfg: DictConfig) -> None:
    """Fit the threshold on the training cases of `data`, score it where the networks are scored, write a run folder."""
    from covidseg.data.prepare.run import prepare
    from covidseg.data.prepare.splits import ALL
    from covidseg.data.protocol import Division
    from covidseg.evaluation.baseline import ThresholdBaseline
    from covidseg.evaluation.cases import evaluate_cases
    from covidseg.evaluation.results import write_results
    from covidseg.evaluation.structures import Task
    from covidseg.runs.folder import RunFolder, run_dir
    from covidseg.runs.slices import keeping_slices
    from covidseg.system.errors import BadInput

    task = Task.from_config(cfg.task)
    if len(task.structures) != 1:
        raise BadInput(f"task={task.name}", "one threshold cannot segment two structures", "task=lesion or task=lung")
    if cfg.fold == ALL:
        raise BadInput(f"fold={ALL}", "a threshold is fitted to be scored", "leave it out, or fold=0, fold=1, ...")
    ((name, structure),) = task.structures.items()
    cfg.row = "threshold"
    folder = RunFolder(run_dir(cfg))
    dataset = prepare(cfg.data, cfg.paths, lambda division: division.require(cfg.fold, [name]))
    split = dataset.split(cfg.fold)
    with folder.lock():
        training = [dataset.cases[case] for case in split.train if name in dataset.cases[case].annotated]
        baseline = ThresholdBaseline.fit(training, structure)
        scored = Division.of_prepared(dataset).scored(cfg.fold, [name])
        sets = {key: [dataset.cases[case] for case in getattr(split, key)] for key in scored}
        rows = evaluate_cases(keeping_slices(baseline.segment, folder.path, task, sets), sets, task)
        interval = {"low_hu": baseline.low, "high_hu": baseline.high}
        metrics = write_results(folder.path, rows, {"threshold": interval, "parameters": 2, "multiply_adds": 0})
    for set_name, structures in metrics["sets"].items():
        dice = structures[name]["dice"]["mean"]
        print(f"{set_name}: {baseline.low} to {baseline.high} HU is called {name}: Dice {dice:.3f}")


if __name__ == "__main__":
    main()
